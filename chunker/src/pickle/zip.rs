//! The directory of a zip file, as PyTorch writes it: entries that are stored, not compressed, in one part.
//!
//! Our own reader, because other tools look for a directory wherever one might be, and in which bytes of the file an
//! entry lies is what matters here. It reads the directory, which it bounds, and of an entry its header; every number
//! is checked against the size of the file.

use std::{
    collections::HashMap,
    io::{Read, Seek},
    ops::Range,
};

use super::bytes;
use crate::{HeaderFault, format::Stop};

/// Bytes of a directory. One of 91,000 entries has some 10 MB.
const DIRECTORY_SIZE_MAX: u64 = 24 << 20;

/// Bytes of the record at the very end, without the comment that may follow it.
const END_SIZE: u64 = 22;
const COMMENT_SIZE_MAX: u64 = u16::MAX as u64;

/// Bytes of the records of the 64-bit extension: where the larger one is, and that.
const LOCATOR_SIZE: u64 = 20;
const END64_SIZE: u64 = 56;

/// Bytes of an entry in the directory, and of an entry's own header, without names and extra fields.
const ENTRY_SIZE: usize = 46;
const LOCAL_SIZE: u64 = 30;

/// The extra field that holds numbers that are too large for 32 bits.
const EXTRA64: u16 = 1;

/// What a zip file holds.
#[derive(Debug)]
pub(super) struct Zip {
    entries: HashMap<Vec<u8>, Entry>,
    /// Where the directory begins, and so where the entries end at the latest.
    end: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where its own header is.
    header: u64,
    size: u64,
    /// Whether its bytes are as they were given.
    stored: bool,
}

/// The bytes of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) start: u64,
    size: u64,
}

impl Place {
    pub(super) fn size(&self) -> u64 {
        self.size
    }
}

fn damaged(what: &'static str) -> HeaderFault {
    HeaderFault::Zip(what)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl Zip {
    /// The directory of a file of `size` bytes.
    pub(super) fn read(file: &mut (impl Read + Seek), size: u64) -> Result<Self, Stop> {
        let (directory, count) = directory(file, size)?;
        let length = directory.end - directory.start;
        if DIRECTORY_SIZE_MAX < length {
            return Err(damaged("its directory is larger than any").into());
        }
        if length / (ENTRY_SIZE as u64) < count {
            return Err(HeaderFault::Count { what: "entries", count, size: length }.into());
        }
        let listed = bytes(file, directory.start, length)?;
        let mut entries = HashMap::new();
        let mut rest = listed.as_slice();
        for _ in 0..count {
            let (name, entry, after) = Entry::read(rest)?;
            if entries.insert(name.to_vec(), entry).is_some() {
                return Err(damaged("two entries have one name").into());
            }
            rest = after;
        }
        Ok(Self { entries, end: directory.start })
    }

    /// The entry that says what the others are, and the folder in the zip that it is in, with a slash at its end.
    pub(super) fn pickle(&self, file: &mut (impl Read + Seek)) -> Result<(String, Place), Stop> {
        let mut found = self.entries.keys().filter_map(|name| {
            let name = std::str::from_utf8(name).ok()?;
            let folder = name.strip_suffix("data.pkl")?;
            // Beside folders of its own, PyTorch has everything in one.
            (folder.is_empty() || folder.find('/') == Some(folder.len() - 1)).then_some((folder, name))
        });
        match (found.next(), found.next()) {
            (Some((folder, name)), None) => {
                let place = self.find(file, name)?.ok_or(damaged("its data.pkl is missing"))?;
                Ok((folder.to_owned(), place))
            }
            (None, _) => Err(damaged("its data.pkl is missing").into()),
            _ => Err(damaged("it has more than one data.pkl").into()),
        }
    }

    /// The bytes of the entry called `name`, if there is one.
    pub(super) fn find(&self, file: &mut (impl Read + Seek), name: &str) -> Result<Option<Place>, Stop> {
        let Some(entry) = self.entries.get(name.as_bytes()) else { return Ok(None) };
        if !entry.stored {
            return Err(damaged("an entry is compressed or encrypted").into());
        }
        let outside = || damaged("an entry lies outside the file");
        let after =
            entry.header.checked_add(LOCAL_SIZE).filter(|after| *after <= self.end).ok_or_else(outside)?;
        let header = bytes(file, entry.header, LOCAL_SIZE)?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(damaged("an entry is not where its directory says").into());
        }
        let start = after + u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        let inside = start.checked_add(entry.size).is_some_and(|end| end <= self.end);
        if inside { Ok(Some(Place { start, size: entry.size })) } else { Err(outside().into()) }
    }
}

/// Where the directory is, and how many entries it has.
fn directory(file: &mut (impl Read + Seek), size: u64) -> Result<(Range<u64>, u64), Stop> {
    let missing = || damaged("its directory is missing; it may be cut off");
    let tail_size = size.min(END_SIZE + COMMENT_SIZE_MAX);
    let tail = bytes(file, size - tail_size, tail_size)?;
    // The last place where such a record ends with the file.
    let is_end = |at: &usize| {
        tail[*at..].starts_with(b"PK\x05\x06")
            && at + END_SIZE as usize + usize::from(u16_at(&tail, at + 20)) == tail.len()
    };
    let last = tail.len().checked_sub(END_SIZE as usize).ok_or_else(missing)?;
    let at = (0..=last).rev().find(is_end).ok_or_else(missing)?;
    let record = &tail[at..];
    let mut end = size - tail_size + at as u64;
    let (mut count, mut length, mut start) =
        (u64::from(u16_at(record, 10)), u64::from(u32_at(record, 12)), u64::from(u32_at(record, 16)));
    let parts = u16_at(record, 4) | u16_at(record, 6);
    if let Some(locator) = end.checked_sub(LOCATOR_SIZE) {
        let record = bytes(file, locator, LOCATOR_SIZE)?;
        if record.starts_with(b"PK\x06\x07") {
            let at = u64_at(&record, 8);
            if at.checked_add(END64_SIZE).is_none_or(|after| locator < after) {
                return Err(missing().into());
            }
            let record = bytes(file, at, END64_SIZE)?;
            if !record.starts_with(b"PK\x06\x06") {
                return Err(missing().into());
            }
            (count, length, start) = (u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48));
            end = at;
        }
    }
    if parts != 0 && parts != u16::MAX {
        return Err(damaged("it is one part of several").into());
    }
    match start.checked_add(length) {
        Some(after) if after <= end => Ok((start..after, count)),
        _ => Err(missing().into()),
    }
}

impl Entry {
    /// The first entry of `listed`, with its name, and what follows it.
    fn read(listed: &[u8]) -> Result<(&[u8], Self, &[u8]), HeaderFault> {
        let cut = || damaged("its directory is cut off");
        let (fixed, rest) = listed.split_at_checked(ENTRY_SIZE).ok_or_else(cut)?;
        if !fixed.starts_with(b"PK\x01\x02") {
            return Err(damaged("its directory holds something else than entries"));
        }
        let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(fixed, at)));
        let (name, rest) = rest.split_at_checked(name).ok_or_else(cut)?;
        let (extra, rest) = rest.split_at_checked(extra).ok_or_else(cut)?;
        let (_, rest) = rest.split_at_checked(comment).ok_or_else(cut)?;
        // The size here, that before compression, and the place: what is too large stands in the extra field.
        let narrow = [24, 20, 42].map(|at| u32_at(fixed, at));
        let [whole, size, header] = wide(narrow, extra)?;
        let stored = u16_at(fixed, 10) == 0 && u16_at(fixed, 8) & 1 == 0 && whole == size;
        Ok((name, Self { header, size, stored }, rest))
    }
}

/// The numbers, of which those that are all ones stand in the extra field, in this order.
fn wide(narrow: [u32; 3], mut extra: &[u8]) -> Result<[u64; 3], HeaderFault> {
    let mut numbers = narrow.map(u64::from);
    if !narrow.contains(&u32::MAX) {
        return Ok(numbers);
    }
    let cut = || damaged("a number in its directory is cut off");
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let (field, after) = rest.split_at_checked(u16_at(head, 2).into()).ok_or_else(cut)?;
        if u16_at(head, 0) == EXTRA64 {
            let mut field = field;
            for (number, _) in numbers.iter_mut().zip(narrow).filter(|(_, narrow)| *narrow == u32::MAX) {
                let (eight, rest) = field.split_at_checked(8).ok_or_else(cut)?;
                (*number, field) = (u64_at(eight, 0), rest);
            }
            return Ok(numbers);
        }
        extra = after;
    }
    Err(cut())
}
