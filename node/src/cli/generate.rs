//! `generate`: continues a prompt, printing as tokens come.

use std::{
    io::{IsTerminal, Read},
    ops::ControlFlow,
};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Context,
    error::CliError,
    human::{self, Align},
    output::Output,
};
use crate::api::{CacheStats, GenerationStats};

/// Continue a prompt, printing tokens as they come
#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// Model id, a prefix of one, an alias, or PEER/NAME
    model: String,
    /// The prompt; read from stdin, without its last line end, if left out
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Tokens to generate at most
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..))]
    max_tokens: u64,
    /// How freely to choose; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Choose among the most likely tokens that have this share of the probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Choose among this many most likely tokens
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<u32>,
    /// Makes the choices the same each time
    #[arg(long, value_name = "S")]
    seed: Option<u32>,
    /// Text that ends the generation. May be given many times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
}

/// What `--json` writes.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Told<'a> {
    Token {
        text: &'a str,
    },
    Done {
        finish_reason: Option<&'a str>,
        #[serde(flatten)]
        stats: &'a GenerationStats,
    },
}

/// What we read of a chunk of the answer.
#[derive(Debug, Default, Deserialize)]
struct Chunk {
    choices: Vec<Choice>,
    surf: Option<GenerationStats>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    text: String,
    finish_reason: Option<String>,
}

impl Generate {
    pub(crate) async fn run(self, context: &Context) -> Result<(), CliError> {
        let client = context.client()?;
        let prompt = match &self.prompt {
            Some(prompt) => prompt.clone(),
            None => read_prompt(&context.output).await?,
        };
        let mut printer = Printer { output: &context.output, ends_line: true };
        let body = self.body(&prompt);
        let listening = client.listen(&["v1", "completions"], &body, |chunk| printer.chunk(chunk));
        // Dropping the request closes the connection, and that cancels the generation.
        let listened = tokio::select! {
            listened = listening => listened,
            _ = tokio::signal::ctrl_c() => Err(CliError::failed("cancelled")),
        };
        printer.end_line()?;
        listened
    }

    fn body(&self, prompt: &str) -> Value {
        let mut body = json!({
            "model": self.model,
            "prompt": prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": true,
        });
        let wanted = [
            ("top_p", self.top_p.map(Value::from)),
            ("top_k", self.top_k.map(Value::from)),
            ("seed", self.seed.map(Value::from)),
            ("stop", (!self.stop.is_empty()).then(|| json!(self.stop))),
        ];
        for (name, value) in wanted {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        body
    }
}

/// Writes an answer as it comes.
struct Printer<'a> {
    output: &'a Output,
    /// Whether what was written so far ends with a line.
    ends_line: bool,
}

impl Printer<'_> {
    fn chunk(&mut self, chunk: Value) -> Result<ControlFlow<()>, CliError> {
        let chunk: Chunk = serde_json::from_value(chunk).unwrap_or_default();
        let Some(choice) = chunk.choices.first() else { return Ok(ControlFlow::Continue(())) };
        if !choice.text.is_empty() {
            self.text(&choice.text)?;
        }
        if let Some(stats) = &chunk.surf {
            self.done(choice.finish_reason.as_deref(), stats)?;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn text(&mut self, text: &str) -> Result<(), CliError> {
        if self.output.json {
            return self.output.object(&Told::Token { text });
        }
        self.ends_line = text.ends_with('\n');
        self.output.piece(text)
    }

    fn done(&mut self, finish_reason: Option<&str>, stats: &GenerationStats) -> Result<(), CliError> {
        if self.output.json {
            return self.output.object(&Told::Done { finish_reason, stats });
        }
        self.end_line()?;
        self.output.note(&summary(stats));
        if 0 < self.output.verbose {
            self.output.note(groups(&stats.cache).trim_end());
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), CliError> {
        if std::mem::replace(&mut self.ends_line, true) { Ok(()) } else { self.output.piece("\n") }
    }
}

async fn read_prompt(output: &Output) -> Result<String, CliError> {
    if std::io::stdin().is_terminal() {
        output.note("reading the prompt from the terminal; Ctrl-D ends it");
    }
    let reading = tokio::task::spawn_blocking(|| {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).map(|_| text)
    });
    let read = tokio::select! {
        read = reading => read.expect("reading does not panic and is not aborted"),
        _ = tokio::signal::ctrl_c() => return Err(CliError::failed("cancelled")),
    };
    let text = read.map_err(|error| CliError::failed(format!("stdin cannot be read as text: {error}")))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

fn summary(stats: &GenerationStats) -> String {
    let cache = &stats.cache;
    let mut text = format!(
        "{} tokens after {} of prompt; the first after {}, then {:.1} each second",
        stats.completion_tokens,
        stats.prompt_tokens,
        human::seconds(stats.ttft_ms / 1e3),
        stats.tokens_per_s,
    );
    let needed = cache.hits + cache.ready + cache.misses;
    if 0 < needed {
        let hits = human::percent(cache.hits, needed);
        text += &format!("; {hits} of the weights were in memory over {} passes", cache.passes);
    }
    text
}

fn groups(cache: &CacheStats) -> String {
    let rows = cache.per_group.iter().map(|group| {
        let counts = [group.hits, group.ready, group.misses].map(|count| count.to_string());
        let [hits, ready, misses] = counts;
        [group.group.clone(), hits, ready, misses, human::bytes(group.bytes)]
    });
    let columns = [
        ("GROUP", Align::Left),
        ("HITS", Align::Right),
        ("READY", Align::Right),
        ("MISSES", Align::Right),
        ("SIZE", Align::Right),
    ];
    human::table(columns, &rows.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_events_are_as_documented() {
        let stats = GenerationStats {
            prompt_tokens: 3,
            completion_tokens: 2,
            ttft_ms: 1.5,
            ..GenerationStats::default()
        };
        let done = serde_json::to_value(Told::Done { finish_reason: Some("stop"), stats: &stats }).unwrap();
        assert_eq!(
            (&done["event"], &done["prompt_tokens"], &done["ttft_ms"]),
            (&json!("done"), &json!(3), &json!(1.5))
        );
        assert!(done["cache"]["per_group"].is_array() && done["tokens_per_s"].is_number());
        assert_eq!(
            serde_json::to_value(Told::Token { text: "a" }).unwrap(),
            json!({"event": "token", "text": "a"})
        );
    }

    #[test]
    fn a_chunk_is_read_whatever_else_it_holds() {
        let chunk = json!({"id": "x", "choices": [{"index": 0, "text": "a", "logprobs": null, "finish_reason": null}]});
        let chunk: Chunk = serde_json::from_value(chunk).unwrap();
        assert_eq!((chunk.choices[0].text.as_str(), chunk.surf.is_none()), ("a", true));
    }
}
