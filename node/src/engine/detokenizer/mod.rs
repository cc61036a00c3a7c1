//! Tokens to text as they come: the tokens of a tokenizer and what its decoder does to them, without the
//! tokenizer.
//!
//! What a [`Decoder`] shows, put together, is what `tokenizers` makes of prompt and continuation at
//! once, without what it makes of the prompt, wherever the prompt ends. Two things differ, so that no
//! character is lost: one that begins in the prompt is shown whole by the token that completes it, and
//! characters in a run of byte tokens are shown though another byte of the run is none, as SentencePiece
//! does.

mod letters;
mod stage;
mod utf8;

#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc};

use serde_json::Value;
use tokenizers::Tokenizer;

use self::stage::{Link, State};

/// Tokens with text at the end of a prompt that the continuation depends on. Half a character is at most
/// three of them; the rest is for what stages hold back.
const TAIL_TOKENS: usize = 64;

/// Bytes of a token. Those of vocabularies that are in use have a few hundred at most.
const TOKEN_SIZE_MAX: usize = 4 << 10;

/// See the module.
#[derive(Debug)]
pub(crate) struct Detokenizer {
    /// How the vocabulary writes its tokens, one after the other.
    texts: String,
    tokens: HashMap<u32, Token>,
    /// Bytes of the longest token.
    longest: usize,
    links: Vec<Link>,
}

/// Where a token stands in the texts, and whether it is left out of what is shown.
#[derive(Clone, Copy, Debug)]
struct Token {
    start: usize,
    end: usize,
    special: bool,
}

/// A text on its way.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    detokenizer: Option<Arc<Detokenizer>>,
    states: Vec<State>,
    /// Whether special tokens are shown.
    special: bool,
    /// Whether no token with text came yet.
    first: bool,
    /// Characters shown.
    shown: usize,
    /// What was told of half a character at the end of the prompt. If it never becomes one, this is what the text goes
    /// on with, and is not told again.
    told: String,
}

/// What became of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Text that has become certain.
    pub(crate) text: String,
    /// The token's own bytes: what it adds to the text, be it a part of a character.
    pub(crate) bytes: Vec<u8>,
    /// Characters before the one that its first byte is part of.
    pub(crate) offset: usize,
    /// Whether it is the first of the text, which some tokenizers write in another way.
    pub(crate) first: bool,
}

impl Detokenizer {
    /// That of `tokenizer`.
    #[cfg(test)]
    pub(crate) fn of(tokenizer: &Tokenizer) -> Result<Self, String> {
        let decoder = serde_json::to_value(tokenizer.get_decoder()).map_err(|error| error.to_string())?;
        Self::new(Self::tokens(tokenizer), &decoder)
    }

    /// Every token of `tokenizer`: its id, how the vocabulary writes it, whether it is special.
    pub(crate) fn tokens(tokenizer: &Tokenizer) -> impl Iterator<Item = (u32, String, bool)> {
        let ids = tokenizer.get_vocab(true).into_values();
        ids.filter_map(|id| {
            let text = tokenizer.id_to_token(id)?;
            let special = tokenizer.get_added_vocabulary().is_special_token(&text);
            Some((id, text, special))
        })
    }

    /// Of these tokens, and a decoder as `tokenizer.json` writes it; `null` for none.
    pub(crate) fn new(
        tokens: impl IntoIterator<Item = (u32, String, bool)>,
        decoder: &Value,
    ) -> Result<Self, String> {
        let links = stage::read(decoder)?;
        let mut all = Self { texts: String::new(), tokens: HashMap::new(), longest: 0, links };
        for (id, text, special) in tokens {
            if TOKEN_SIZE_MAX < text.len() {
                return Err(format!("token {id} has {} bytes; {TOKEN_SIZE_MAX} are read", text.len()));
            }
            all.longest = all.longest.max(text.len());
            let start = all.texts.len();
            all.texts += &text;
            all.tokens.insert(id, Token { start, end: all.texts.len(), special });
        }
        Ok(all)
    }

    /// The bytes of a token by itself: the first of a text, or one that others precede. Of a special
    /// token, its name.
    pub(crate) fn bytes(&self, id: u32, first: bool) -> Vec<u8> {
        let Some(token) = self.tokens.get(&id) else { return Vec::new() };
        let text = self.text(token);
        if token.special {
            return text.into_bytes();
        }
        let mut items = vec![text];
        for link in &self.links {
            if let [token] = &items[..]
                && let Some(bytes) = link.bytes(token)
            {
                match String::from_utf8(bytes) {
                    Ok(text) => items = vec![text],
                    Err(error) => return error.into_bytes(),
                }
                continue;
            }
            let mut state = if first { State::default() } else { State::going_on() };
            let mut next = Vec::new();
            for item in items {
                link.push(&mut state, item, &mut next);
            }
            next.extend(link.finish(&mut state, true));
            items = next;
        }
        items.concat().into_bytes()
    }

    /// Bytes that one token may become.
    pub(crate) fn piece_bytes_max(&self) -> usize {
        self.links.iter().fold(self.longest, |bytes, link| link.bytes_max(bytes))
    }

    fn text(&self, token: &Token) -> String {
        self.texts[token.start..token.end].to_owned()
    }

    fn has_text(&self, id: u32) -> bool {
        self.tokens.get(&id).is_some_and(|token| !token.special)
    }

    /// Runs `item` through the stages from the one at `from` on. The number is that of
    /// [`Link::push`].
    fn run(&self, states: &mut [State], from: usize, item: String) -> (String, usize) {
        let (mut items, mut late) = (vec![item], 0);
        for (link, state) in self.links.iter().zip(states).skip(from) {
            let mut next = Vec::with_capacity(items.len());
            for item in items {
                late += link.push(state, item, &mut next);
            }
            items = next;
        }
        (items.concat(), late)
    }
}

impl Decoder {
    /// For a whole text, with special tokens if `special`. Without a tokenizer no token has text.
    pub(crate) fn new(detokenizer: Option<Arc<Detokenizer>>, special: bool) -> Self {
        let stages = detokenizer.as_ref().map_or(0, |detokenizer| detokenizer.links.len());
        let states = vec![State::default(); stages];
        Self { detokenizer, states, special, first: true, shown: 0, told: String::new() }
    }

    /// For what follows `prompt`. Half a character at its end is shown as broken if it never becomes one
    /// and `shows_broken`; else the prompt's reader was told of it.
    pub(crate) fn after(detokenizer: Option<Arc<Detokenizer>>, prompt: &[u32], shows_broken: bool) -> Self {
        let has_text = |id: &&u32| detokenizer.as_ref().is_some_and(|all| all.has_text(**id));
        let tail = prompt.iter().rev().filter(has_text).take(TAIL_TOKENS);
        let mut tail: Vec<u32> = tail.copied().collect();
        tail.reverse();
        let goes_on = TAIL_TOKENS < prompt.iter().filter(has_text).take(TAIL_TOKENS + 1).count();
        let mut decoder = Self::new(detokenizer, false);
        if goes_on {
            decoder.states.fill_with(State::going_on);
        }
        for id in tail {
            decoder.push(id);
        }
        if !shows_broken {
            decoder.told = decoder.clone().give_up();
        }
        decoder.shown = 0;
        decoder
    }

    /// What becomes of the next token. Special ones have no text, unless they are shown.
    pub(crate) fn push(&mut self, id: u32) -> Piece {
        let Some(detokenizer) = self.detokenizer.clone() else { return Piece::default() };
        let (offset, first) = (self.shown, self.first);
        let hidden = |token: &&Token| token.special && !self.special;
        let Some(token) = detokenizer.tokens.get(&id).filter(|token| !hidden(token)) else {
            let bytes = detokenizer.bytes(id, first);
            return Piece { text: String::new(), bytes, offset, first };
        };
        self.first = false;
        let was_settled = self.is_settled();
        let (text, late) = detokenizer.run(&mut self.states, 0, detokenizer.text(token));
        let told = text.chars().count();
        let text = self.untold(text);
        let shown = text.chars().count();
        let late = late.saturating_sub(told - shown);
        self.shown += shown;
        let bytes = match was_settled && self.is_settled() {
            true => text.as_bytes().to_vec(),
            false => detokenizer.bytes(id, first),
        };
        Piece { text, bytes, offset: offset + late, first }
    }

    /// What is left. `ended`: the text is at its end, so that half a character never becomes one, and is
    /// shown as broken.
    pub(crate) fn finish(&mut self, ended: bool) -> String {
        let Some(detokenizer) = self.detokenizer.clone() else { return String::new() };
        let mut text = String::new();
        for (at, link) in detokenizer.links.iter().enumerate() {
            if let Some(rest) = link.finish(&mut self.states[at], ended) {
                text += &detokenizer.run(&mut self.states, at + 1, rest).0;
            }
        }
        self.untold(text)
    }

    /// What stands for half a character at the end, if it never becomes one.
    fn give_up(mut self) -> String {
        let Some(detokenizer) = self.detokenizer.take() else { return String::new() };
        let mut links = detokenizer.links.iter().enumerate();
        let broken = links.find_map(|(at, link)| Some((at, link.give_up(&mut self.states[at])?)));
        broken.map_or(String::new(), |(at, text)| detokenizer.run(&mut self.states, at + 1, text).0)
    }

    /// `text`, which comes next, without what was told of it.
    fn untold(&mut self, text: String) -> String {
        match text.is_empty() {
            true => text,
            false => {
                let told = std::mem::take(&mut self.told);
                text.strip_prefix(&told).map(str::to_owned).unwrap_or(text)
            }
        }
    }

    fn is_settled(&self) -> bool {
        self.states.iter().all(State::is_settled)
    }
}
