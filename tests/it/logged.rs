//! What the program logs while something runs on this thread, in both forms.

use std::io::{self, Write};
use std::sync::{Arc, LazyLock, Mutex};

use failover::cli::log_lines::subscriber;
use serde_json::{Map, Value};
use tracing::Dispatch;
use tracing::subscriber::NoSubscriber;
use tracing_subscriber::EnvFilter;

/// Lines in memory.
#[derive(Debug, Clone, Default)]
struct Tape(Arc<Mutex<Vec<u8>>>);

impl Write for Tape {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lines(json: bool, run: impl FnOnce()) -> Vec<String> {
    let tape = Tape::default();
    let out = tape.clone();
    // Where there is one dispatcher only, whether an event is wanted is asked of the thread that comes by
    // it first, which may be that of another test.
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));
    let _second = &*SECOND;
    let lines = subscriber(json, EnvFilter::new("info"), move || out.clone());
    tracing::subscriber::with_default(lines, run);
    let text = String::from_utf8(tape.0.lock().unwrap().clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// The lines of text that are logged.
pub(crate) fn text(run: impl FnOnce()) -> Vec<String> {
    lines(false, run)
}

/// The lines of JSON that are logged, each with its own fields and those of its spans, of which the
/// innermost counts.
pub(crate) fn json(run: impl FnOnce()) -> Vec<Map<String, Value>> {
    let lines = lines(true, run).into_iter();
    let fields = lines.map(|line| {
        let mut line: Map<String, Value> = serde_json::from_str(&line).unwrap();
        let spans = line.remove("spans").unwrap_or_default();
        let mut fields = Map::new();
        for span in spans.as_array().into_iter().flatten() {
            fields.extend(span.as_object().unwrap().clone());
        }
        fields.extend(line);
        fields
    });
    fields.collect()
}
