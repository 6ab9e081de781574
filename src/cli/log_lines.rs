//! What the verbs that stay log: one line for each event, as text or as JSON, whatever somebody wrote
//! into it.

use std::io::{self, Write};

use serde_json::Value;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;

use crate::engine::text::{WORD_LIMIT, clip_to, harmless_json};

/// The longest line that is logged, in bytes.
const LINE_LIMIT: usize = 8 * 1024;

/// What takes in events and writes lines to `out`: text, or JSON in which a line carries what its spans
/// know in `spans`.
pub fn subscriber<W: Write + 'static>(
    json: bool,
    filter: EnvFilter,
    out: impl Fn() -> W + Send + Sync + 'static,
) -> Box<dyn Subscriber + Send + Sync> {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(move || OneLine { json, out: out() });
    if json {
        let lines = lines.json().flatten_event(true).with_current_span(false);
        Box::new(lines.finish())
    } else {
        Box::new(lines.finish())
    }
}

/// A place for lines, in which each event is one.
struct OneLine<W> {
    json: bool,
    out: W,
}

impl<W: Write> Write for OneLine<W> {
    /// The formatter hands over a whole event at once.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut line = if self.json {
            json_line(text)
        } else {
            let mut line = text.to_owned();
            clip_to(&mut line, LINE_LIMIT);
            line
        };
        line.push('\n');
        self.out.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The same object in one harmless line. In one that is too long each text is cut: half a line would be
/// no JSON.
fn json_line(text: &str) -> String {
    let line = harmless_json(text);
    if line.len() <= LINE_LIMIT {
        return line.into_owned();
    }
    let mut event = serde_json::from_str(text).unwrap_or_default();
    clip_texts(&mut event);
    event.to_string()
}

fn clip_texts(value: &mut Value) {
    match value {
        Value::String(text) => clip_to(text, WORD_LIMIT),
        Value::Array(values) => values.iter_mut().for_each(clip_texts),
        Value::Object(fields) => fields.values_mut().for_each(clip_texts),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool, event: impl FnOnce()) -> String {
        let memory = Memory::default();
        let out = memory.clone();
        let lines = subscriber(json, EnvFilter::new("info"), move || out.clone());
        tracing::subscriber::with_default(lines, event);
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_event_is_one_harmless_line_however_long_and_whatever_is_in_it() {
        let nasty = "a\nb\u{1b}[31m\u{202e}".to_owned() + &"x".repeat(100_000);
        for json in [false, true] {
            let text = logged(json, || tracing::warn!(nasty, number = 7, "told"));
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            assert!(text.len() <= LINE_LIMIT + 1 && text.ends_with('\n'));
            assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
            if json {
                let line: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(
                    (&line["message"], &line["number"]),
                    (&"told".into(), &7.into())
                );
            }
        }
    }

    #[test]
    fn a_line_carries_what_its_spans_know() {
        let event = || {
            let plan = tracing::error_span!("plan", plan_id = 7, step = "fence");
            plan.in_scope(|| tracing::info!("told"));
        };
        let text = logged(false, event);
        assert!(text.contains("plan{plan_id=7 step=\"fence\"}"), "{text}");
        let line: Value = serde_json::from_str(&logged(true, event)).unwrap();
        let span = &line["spans"][0];
        assert_eq!(
            (&span["plan_id"], &span["step"]),
            (&7.into(), &"fence".into())
        );
    }
}
