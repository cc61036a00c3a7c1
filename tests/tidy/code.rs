//! Rust as the rules of `tidy.rs` read it: what is code, what is test code, and what code names.
//!
//! Deliberately not a parser: comments and literals are blanked, paths are followed, and macros are
//! read as they are written.

/// `text` with comments and the contents of literals blanked. Lines stay where they are.
pub(crate) fn blanked(text: &str) -> String {
    let text: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let end = opaque(&text, at);
        if end == at {
            code.push(text[at]);
            at += 1;
        } else {
            code.extend(text[at..end].iter().map(|&c| if c == '\n' { c } else { ' ' }));
            at = end;
        }
    }
    code
}

/// Where the comment or literal that starts at `at` ends; `at` if none does.
fn opaque(text: &[char], at: usize) -> usize {
    let starts = |at: usize, with: &str| with.chars().enumerate().all(|(i, c)| text.get(at + i) == Some(&c));
    let until = |from: usize, end: &str| {
        (from..text.len()).find(|&i| starts(i, end)).map_or(text.len(), |i| i + end.chars().count())
    };
    let escaped = |quote: char| {
        let mut i = at + 1;
        while i < text.len() && text[i] != quote {
            i += if text[i] == '\\' { 2 } else { 1 };
        }
        (i + 1).min(text.len())
    };
    match text[at] {
        '/' if starts(at, "//") => (at..text.len()).find(|&i| text[i] == '\n').unwrap_or(text.len()),
        '/' if starts(at, "/*") => {
            let (mut i, mut deep) = (at + 2, 1);
            while i < text.len() && 0 < deep {
                let step = if starts(i, "/*") {
                    1
                } else if starts(i, "*/") {
                    -1
                } else {
                    0
                };
                deep += step;
                i += if step == 0 { 1 } else { 2 };
            }
            i.min(text.len())
        }
        'r' => {
            let hashes = text[at + 1..].iter().take_while(|&&c| c == '#').count();
            let is_string = text.get(at + 1 + hashes) == Some(&'"');
            if is_string { until(at + 2 + hashes, &format!("\"{}", "#".repeat(hashes))) } else { at }
        }
        '"' => escaped('"'),
        // Otherwise it is a lifetime.
        '\'' if starts(at + 1, "\\") || text.get(at + 2) == Some(&'\'') => escaped('\''),
        _ => at,
    }
}

/// Blanked `code` with the items under `#[cfg(test)]` blanked too.
pub(crate) fn without_tests(code: &str) -> String {
    let mut left = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = rest.find("#[cfg(test)]") {
        let (before, item) = rest.split_at(start);
        let mut deep = 0;
        let end = item.char_indices().find(|(_, c)| {
            deep += i32::from("{[(".contains(*c)) - i32::from("}])".contains(*c));
            deep == 0 && matches!(c, '}' | ';')
        });
        let (item, after) = item.split_at(end.map_or(item.len(), |(at, _)| at + 1));
        left.push_str(before);
        left.extend(item.chars().filter(|&c| c == '\n'));
        rest = after;
    }
    left + rest
}

/// A path that code names, from its first part.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) line: usize,
    pub(crate) parts: Vec<String>,
}

/// Every path in blanked `code`: of `use` trees each branch, elsewhere those of two parts or more.
pub(crate) fn paths(code: &str) -> Vec<Named> {
    let tokens = tokens(code);
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let (line, token) = tokens[at];
        at += 1;
        match token {
            // `impl Trait + use<'a>` is no import.
            "use" if tokens.get(at).is_some_and(|(_, next)| *next != "<") => {
                branches(&tokens, &mut at, &[], &mut found);
            }
            _ if is_word(token) => {
                let mut parts = vec![token.to_owned()];
                while let [(_, "::"), (_, next), ..] = tokens[at..] {
                    if !is_word(next) {
                        break;
                    }
                    parts.push(next.to_owned());
                    at += 2;
                }
                if 1 < parts.len() {
                    found.push(Named { line, parts });
                }
            }
            _ => (),
        }
    }
    found
}

/// The branches of a `use` tree that starts at `at`, which is moved past it.
fn branches(tokens: &[(usize, &str)], at: &mut usize, stem: &[String], found: &mut Vec<Named>) {
    let mut parts = stem.to_vec();
    let line = tokens.get(*at).map_or(0, |(line, _)| *line);
    while let Some(&(_, token)) = tokens.get(*at) {
        match token {
            "::" => *at += 1,
            "as" => *at += 2,
            "{" => {
                while tokens.get(*at).is_some_and(|(_, token)| matches!(*token, "{" | ",")) {
                    *at += 1;
                    branches(tokens, at, &parts, found);
                }
                *at += 1; // The closing brace.
                return;
            }
            word if is_word(word) => {
                parts.push(word.to_owned());
                *at += 1;
            }
            "*" => *at += 1,
            _ => break,
        }
    }
    if stem.len() < parts.len() {
        found.push(Named { line, parts });
    }
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Words, `::`, and other characters one by one, each with its line.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    for (at, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let size = match word {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                _ => word,
            };
            tokens.push((at + 1, &rest[..size]));
            rest = rest[size..].trim_start();
        }
    }
    tokens
}

/// How many `super` lead from the file at `inside` the crate to its root.
pub(crate) fn depth(inside: &str) -> usize {
    inside.split('/').filter(|part| *part != "mod.rs").count()
}

/// What a path names in the crate's root, if it goes there.
pub(crate) fn from_root(path: &Named, depth: usize) -> Option<&str> {
    let parts = match &path.parts[..] {
        [first, rest @ ..] if first == "crate" => rest,
        [first, rest @ ..] if first == "self" && rest.first().is_some_and(|next| next == "super") => {
            from_supers(rest, depth)?
        }
        parts => from_supers(parts, depth)?,
    };
    parts.first().map(String::as_str)
}

fn from_supers(parts: &[String], depth: usize) -> Option<&[String]> {
    let supers = parts.iter().take_while(|part| *part == "super").count();
    (depth <= supers).then(|| &parts[supers..])
}
