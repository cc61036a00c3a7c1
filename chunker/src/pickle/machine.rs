//! The operations of pickles that tables of tensors are made of, and no others.
//!
//! Nothing is run: what the few functions would make that a pickle may name (see `names`) is noted. Every
//! operation makes one value at most, values refer to each other by number, and there is a most of them and of
//! the places that they stand in: so time and memory are bounded, whatever the bytes say.

use surf_protocol::limits::TENSOR_RANK_MAX;

use super::names::{Element, Name, named};
use crate::HeaderFault;

/// Values that a pickle may make. One with 91,000 tensors makes two million.
const VALUES_MAX: usize = 5 << 19;

/// Places of values in lists and tables, and notes of them. The same makes a million of these.
const LINKS_MAX: usize = 1 << 22;

/// Tensors that it may make, as many as a file of any format may hold.
const TENSORS_MAX: usize = 1 << 18;

/// Bytes in the name of a storage, which is a number.
const KEY_SIZE_MAX: usize = 64;

/// Characters of a name that are told of it.
const TOLD_MAX: usize = 200;

/// A value, by its number.
type Id = u32;

/// What a pickle holds.
#[derive(Debug)]
pub(super) struct Values<'a> {
    values: Vec<Value<'a>>,
    storages: Vec<Storage<'a>>,
    root: Id,
}

/// Anything in a pickle.
#[derive(Debug)]
pub(super) enum Value<'a> {
    Mark,
    /// What only has to be there: a float, a truth value, nothing.
    Other,
    Number(i64),
    Text(&'a str),
    /// Something that can be called, or a type.
    Name(Name),
    /// A tuple or a list.
    List(Vec<Id>),
    Table(Vec<(Id, Id)>),
    /// By its number among storages.
    Storage(u32),
    Tensor(Box<View>),
}

/// Bytes that tensors share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    pub(super) key: &'a str,
    pub(super) element: Option<Element>,
}

/// A tensor, as a view of a storage. Numbers count elements.
#[derive(Debug)]
pub(super) struct View {
    storage: u32,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
    /// Of these, where the storage is just bytes.
    pub(super) element: Option<Element>,
}

impl<'a> Values<'a> {
    /// What `pickle` holds.
    pub(super) fn of(pickle: &'a [u8]) -> Result<Self, HeaderFault> {
        Machine::new(pickle).run()
    }

    pub(super) fn root(&self) -> &Value<'a> {
        self.at(self.root)
    }

    pub(super) fn at(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    pub(super) fn is_table(&self, id: Id) -> bool {
        matches!(self.at(id), Value::Table(_))
    }

    pub(super) fn storage(&self, view: &View) -> &Storage<'a> {
        &self.storages[view.storage as usize]
    }
}

/// A pickle that is being read.
struct Machine<'a> {
    pickle: &'a [u8],
    at: usize,
    made: Values<'a>,
    stack: Vec<Id>,
    /// What was noted, by the numbers of notes.
    memo: Vec<Option<Id>>,
    links: usize,
    tensors: usize,
}

fn within(what: &'static str, count: usize, max: usize) -> Result<(), HeaderFault> {
    match count <= max {
        true => Ok(()),
        false => Err(HeaderFault::TooMany { what, count: count as u64, max: max as u64 }),
    }
}

fn malformed(what: &str) -> HeaderFault {
    HeaderFault::Malformed(what.to_owned())
}

impl<'a> Machine<'a> {
    fn new(pickle: &'a [u8]) -> Self {
        let made = Values { values: Vec::new(), storages: Vec::new(), root: 0 };
        Self { pickle, at: 0, made, stack: Vec::new(), memo: Vec::new(), links: 0, tensors: 0 }
    }

    fn run(mut self) -> Result<Values<'a>, HeaderFault> {
        loop {
            match self.byte()? {
                // STOP
                b'.' => {
                    self.made.root = self.pop()?;
                    return Ok(self.made);
                }
                operation => self.step(operation)?,
            }
        }
    }

    fn step(&mut self, operation: u8) -> Result<(), HeaderFault> {
        match operation {
            // PROTO, FRAME: the version, and how far the next operations go.
            0x80 => self.take(1).map(drop),
            0x95 => self.take(8).map(drop),
            b'(' => self.push(Value::Mark),
            // NONE, NEWTRUE, NEWFALSE, BINFLOAT
            b'N' | 0x88 | 0x89 => self.push(Value::Other),
            b'G' => self.take(8).map(drop).and_then(|()| self.push(Value::Other)),
            b'K' | b'M' | b'J' | 0x8a => self.number(operation),
            b'X' | 0x8c | 0x8d | b'U' | b'T' => self.string(operation),
            b'}' => self.push(Value::Table(Vec::new())),
            // EMPTY_LIST, EMPTY_TUPLE
            b']' | b')' => self.push(Value::List(Vec::new())),
            b't' => self.marked().and_then(|items| self.push(Value::List(items))),
            0x85..=0x87 => self.last(usize::from(operation - 0x84)),
            b'a' => {
                let item = self.pop()?;
                self.link(1)?;
                self.append(vec![item])
            }
            b'e' => self.marked().and_then(|items| self.append(items)),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.link(2)?;
                self.insert(vec![key, value])
            }
            b'u' => self.marked().and_then(|items| self.insert(items)),
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.remember(operation),
            b'c' | 0x93 => self.global(operation),
            b'Q' => self.storage(),
            b'R' => self.call(),
            // BUILD: attributes of a table or a tensor, which are not needed.
            b'b' => self.pop().map(drop),
            other => Err(HeaderFault::Operation(other)),
        }
    }

    fn byte(&mut self) -> Result<u8, HeaderFault> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], HeaderFault> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.pickle.get(self.at..end));
        let taken = taken.ok_or_else(|| malformed("its pickle is cut off"))?;
        self.at += count;
        Ok(taken)
    }

    /// A number of `count` bytes without a sign.
    fn unsigned(&mut self, count: usize) -> Result<u64, HeaderFault> {
        Ok(self.take(count)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), HeaderFault> {
        within("values", self.made.values.len() + 1, VALUES_MAX)?;
        self.made.values.push(value);
        self.push_known(self.made.values.len() as u32 - 1)
    }

    fn push_known(&mut self, id: Id) -> Result<(), HeaderFault> {
        within("values", self.stack.len() + 1, VALUES_MAX)?;
        self.stack.push(id);
        Ok(())
    }

    /// Counts `more` places that values stand in.
    fn link(&mut self, more: usize) -> Result<(), HeaderFault> {
        self.links += more;
        within("places of values", self.links, LINKS_MAX)
    }

    fn pop(&mut self) -> Result<Id, HeaderFault> {
        self.stack.pop().ok_or_else(|| malformed("its pickle takes what it has not made"))
    }

    /// What was pushed since the last mark.
    fn marked(&mut self) -> Result<Vec<Id>, HeaderFault> {
        let is_mark = |id: &Id| matches!(self.made.at(*id), Value::Mark);
        let at = self.stack.iter().rposition(is_mark);
        let at = at.ok_or_else(|| malformed("its pickle goes back to a mark that is not there"))?;
        let items = self.stack.split_off(at + 1);
        self.stack.pop();
        self.link(items.len())?;
        Ok(items)
    }

    /// The last `count` values as one.
    fn last(&mut self, count: usize) -> Result<(), HeaderFault> {
        let at = self.stack.len().checked_sub(count);
        let at = at.ok_or_else(|| malformed("its pickle takes what it has not made"))?;
        let items = self.stack.split_off(at);
        self.link(items.len())?;
        self.push(Value::List(items))
    }

    fn number(&mut self, operation: u8) -> Result<(), HeaderFault> {
        let number = match operation {
            b'K' => self.unsigned(1)? as i64,
            b'M' => self.unsigned(2)? as i64,
            b'J' => i64::from(self.unsigned(4)? as u32 as i32),
            _ => {
                let bytes = self.unsigned(1)? as usize;
                let digits = self.take(bytes)?;
                // Larger ones are seeds and the like; as a size they are refused.
                let negative = digits.last().is_some_and(|byte| 0x80 <= *byte);
                let fill = if negative { -1 } else { 0 };
                match bytes {
                    0..=8 => digits.iter().rev().fold(fill, |number, &byte| number << 8 | i64::from(byte)),
                    _ => return self.push(Value::Other),
                }
            }
        };
        self.push(Value::Number(number))
    }

    fn string(&mut self, operation: u8) -> Result<(), HeaderFault> {
        let length = match operation {
            0x8c | b'U' => self.unsigned(1)?,
            0x8d => self.unsigned(8)?,
            _ => self.unsigned(4)?,
        };
        let length = usize::try_from(length).map_err(|_| malformed("its pickle is cut off"))?;
        let text = std::str::from_utf8(self.take(length)?);
        let text = text.map_err(|error| HeaderFault::Malformed(error.to_string()))?;
        self.push(Value::Text(text))
    }

    fn top(&mut self) -> Result<&mut Value<'a>, HeaderFault> {
        let top = self.stack.last().ok_or_else(|| malformed("its pickle takes what it has not made"))?;
        Ok(&mut self.made.values[*top as usize])
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), HeaderFault> {
        match self.top()? {
            Value::List(list) => list.extend(items),
            _ => return Err(malformed("its pickle adds to what is no list")),
        }
        Ok(())
    }

    fn list(&self, id: Id) -> Result<&[Id], HeaderFault> {
        match self.made.at(id) {
            Value::List(items) => Ok(items),
            _ => Err(malformed("its pickle takes for a list what is none")),
        }
    }

    fn insert(&mut self, items: Vec<Id>) -> Result<(), HeaderFault> {
        let (pairs, rest) = items.as_chunks::<2>();
        match self.top()? {
            Value::Table(table) if rest.is_empty() => {
                table.extend(pairs.iter().map(|&[key, value]| (key, value)))
            }
            _ => return Err(malformed("its pickle adds pairs to what is no table")),
        }
        Ok(())
    }

    /// Notes the last value under a number, or pushes what was noted.
    fn remember(&mut self, operation: u8) -> Result<(), HeaderFault> {
        let number = match operation {
            b'q' | b'h' => self.unsigned(1)?,
            b'r' | b'j' => self.unsigned(4)?,
            _ => self.memo.len() as u64,
        };
        let number = number as usize;
        if matches!(operation, b'h' | b'j') {
            let id = self.memo.get(number).copied().flatten();
            return self.push_known(id.ok_or_else(|| malformed("its pickle recalls what it has not noted"))?);
        }
        let top = *self.stack.last().ok_or_else(|| malformed("its pickle notes what it has not made"))?;
        within("notes", number + 1, VALUES_MAX)?;
        if self.memo.len() <= number {
            self.memo.resize(number + 1, None);
        }
        self.memo[number] = Some(top);
        Ok(())
    }

    fn global(&mut self, operation: u8) -> Result<(), HeaderFault> {
        let (module, name) = match operation {
            b'c' => (self.line()?, self.line()?),
            _ => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.made.at(module), self.made.at(name)) {
                    (Value::Text(module), Value::Text(name)) => (*module, *name),
                    _ => return Err(malformed("its pickle names something by what is no text")),
                }
            }
        };
        let named = named(module, name).ok_or_else(|| {
            HeaderFault::Global(format!("{module}.{name}").chars().take(TOLD_MAX).collect())
        })?;
        self.push(Value::Name(named))
    }

    fn line(&mut self) -> Result<&'a str, HeaderFault> {
        let rest = &self.pickle[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n');
        let line = self.take(length.ok_or_else(|| malformed("its pickle is cut off"))?)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|error| HeaderFault::Malformed(error.to_string()))
    }

    /// `('storage', class, key, location, size)`: bytes that are an entry of their own.
    fn storage(&mut self) -> Result<(), HeaderFault> {
        let id = self.pop()?;
        let strange = || malformed("its pickle refers to something else than bytes of the file");
        let &[kind, class, key, ..] = self.list(id)? else { return Err(strange()) };
        let storage = match [kind, class, key].map(|id| self.made.at(id)) {
            [Value::Text("storage"), Value::Name(Name::Element(element)), Value::Text(key)]
                if key.len() <= KEY_SIZE_MAX =>
            {
                Storage { key, element: *element }
            }
            _ => return Err(strange()),
        };
        let number = self.made.storages.len() as u32;
        self.made.storages.push(storage);
        self.push(Value::Storage(number))
    }

    fn call(&mut self) -> Result<(), HeaderFault> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let Value::Name(name) = *self.made.at(callee) else {
            return Err(malformed("its pickle calls what is no name"));
        };
        let arguments = self.list(arguments)?;
        match name {
            Name::Table => {
                let pairs = arguments.first().map_or(Ok(Vec::new()), |list| self.pairs(*list))?;
                self.link(2 * pairs.len())?;
                self.push(Value::Table(pairs))
            }
            Name::Tensor => {
                let view = self.view(arguments).ok_or_else(strange)?;
                self.tensors += 1;
                within("tensors", self.tensors, TENSORS_MAX)?;
                self.push(Value::Tensor(Box::new(view)))
            }
            // Both are what they are made of.
            Name::Parameter | Name::Size => match arguments.first() {
                Some(&id) => self.push_known(id),
                None => Err(strange()),
            },
            Name::Element(_) => Err(strange()),
        }
    }

    /// A list of pairs as the pairs of a table.
    fn pairs(&self, list: Id) -> Result<Vec<(Id, Id)>, HeaderFault> {
        let list = self.list(list)?;
        // Before they are copied.
        within("places of values", self.links + 2 * list.len(), LINKS_MAX)?;
        let pair = |id: &Id| match self.list(*id)? {
            &[key, value] => Ok((key, value)),
            _ => Err(strange()),
        };
        list.iter().map(pair).collect()
    }

    /// `(storage, offset, shape, strides, requires_grad, hooks, …)`, of which the seventh may be a type.
    fn view(&self, arguments: &[Id]) -> Option<View> {
        let &[storage, offset, shape, strides, ref rest @ ..] = arguments else { return None };
        let [Value::Storage(storage), Value::Number(offset), Value::List(shape), Value::List(strides)] =
            [storage, offset, shape, strides].map(|id| self.made.at(id))
        else {
            return None;
        };
        let element = match rest.get(2).map(|id| self.made.at(*id)) {
            Some(Value::Name(Name::Element(element))) => *element,
            _ => None,
        };
        let number = |id: &Id| match self.made.at(*id) {
            Value::Number(number) => u64::try_from(*number).ok(),
            _ => None,
        };
        let numbers = |list: &[Id]| match list.len() <= TENSOR_RANK_MAX {
            true => list.iter().map(number).collect::<Option<Vec<_>>>(),
            false => None,
        };
        Some(View {
            storage: *storage,
            offset: u64::try_from(*offset).ok()?,
            shape: numbers(shape)?,
            strides: numbers(strides)?,
            element,
        })
    }
}

fn strange() -> HeaderFault {
    malformed("its pickle makes a tensor or a table of strange things")
}
