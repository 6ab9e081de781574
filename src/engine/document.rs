//! Reads TOML files and reports all mistakes at once: line, what is wrong, the correct form.
//!
//! The same code also describes itself: run without a text, it records every key with its kind
//! and range, from which the JSON schema is generated.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::units::Bytes;

/// One mistake in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong, and the correct form.
    pub text: String,
}

/// All mistakes of one text. Displayed as one line each: `file:line: what`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// The file's name as shown to people.
    pub file: String,
    /// At least one, in the order of their lines.
    pub list: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { line, text }) in self.list.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}:{line}: {text}", self.file)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// One key that a text may or must contain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Key {
    /// Dotted, with `*` for a name that the author chooses and `[]` for an element of a list.
    pub path: String,
    /// The kind of its value.
    pub kind: Kind,
    /// Whether it may be omitted.
    pub optional: bool,
}

/// The kind of a key's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Any text; its form may be checked further.
    Text,
    /// A list of texts.
    List,
    /// `true` or `false`.
    Flag,
    /// A whole number within bounds.
    Number(u64, u64),
    /// A duration within bounds, like `30s`.
    Duration(Duration, Duration),
    /// An amount of data, like `16MiB`.
    Bytes,
    /// One of these words.
    Choice(Vec<String>),
    /// A table of keys.
    Table,
    /// A list of tables.
    Tables,
}

/// The text being read, its mistakes so far, and the requested keys.
#[derive(Debug)]
struct Reading<'t> {
    text: &'t str,
    describing: bool,
    /// Whether the keys being described belong to one of several alternatives.
    conditional: Cell<bool>,
    problems: RefCell<Vec<Problem>>,
    keys: RefCell<Vec<Key>>,
}

impl Reading<'_> {
    fn problem(&self, at: &Range<usize>, text: String) {
        let before = self.text.get(..at.start).unwrap_or_default();
        let line = before
            .bytes()
            .filter(|b| *b == b'\n')
            .count()
            .saturating_add(1);
        self.problems.borrow_mut().push(Problem { line, text });
    }
}

/// Reads `text` with `build` and collects all mistakes that `build` reports; its result is returned
/// only if there are none.
pub fn read<T>(
    file: &str,
    text: &str,
    build: impl FnOnce(&Section<'_>) -> Option<T>,
) -> Result<T, Problems> {
    let reading = Reading {
        text,
        describing: false,
        conditional: Cell::new(false),
        problems: RefCell::default(),
        keys: RefCell::default(),
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        reading.problem(
            &error.span().unwrap_or_default(),
            error.message().to_owned(),
        );
    }
    let built = if reading.problems.borrow().is_empty() {
        let span = table.span();
        let root = Section::new(&reading, String::new(), Some((table.get_ref(), span)));
        build(&root)
    } else {
        None // what cannot be parsed would only be reported twice
    };
    let mut list = reading.problems.into_inner();
    list.sort_by_key(|problem| problem.line);
    match built {
        Some(built) if list.is_empty() => Ok(built),
        Some(_) | None => {
            if list.is_empty() {
                list.push(Problem {
                    line: 1,
                    text: "is not complete".to_owned(),
                });
            }
            Err(Problems {
                file: file.to_owned(),
                list,
            })
        }
    }
}

/// The keys that `build` requests, in its order.
pub fn describe<T>(build: impl FnOnce(&Section<'_>) -> Option<T>) -> Vec<Key> {
    let reading = Reading {
        text: "",
        describing: true,
        conditional: Cell::new(false),
        problems: RefCell::default(),
        keys: RefCell::default(),
    };
    build(&Section::new(&reading, String::new(), None));
    let mut seen = BTreeSet::new();
    let mut keys = reading.keys.into_inner();
    // Two alternatives may have a key in common.
    keys.retain(|key| seen.insert(key.path.clone()));
    keys
}

/// One table of the text. When it goes out of scope, unrequested keys are reported as mistakes.
#[derive(Debug)]
pub struct Section<'r> {
    reading: &'r Reading<'r>,
    path: String,
    table: Option<(&'r DeTable<'r>, Range<usize>)>,
    known: RefCell<BTreeSet<String>>,
}

impl<'r> Section<'r> {
    fn new(
        reading: &'r Reading<'r>,
        path: String,
        table: Option<(&'r DeTable<'r>, Range<usize>)>,
    ) -> Self {
        Self {
            reading,
            path,
            table,
            known: RefCell::default(),
        }
    }

    /// The full name of a key: `detect.fail_after`.
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn value(&self, key: &str) -> Option<&'r Spanned<DeValue<'r>>> {
        self.known.borrow_mut().insert(key.to_owned());
        let (table, _) = self.table.as_ref()?;
        table
            .iter()
            .find(|(name, _)| name.get_ref() == key)
            .map(|(_, value)| value)
    }

    /// Reports a mistake in the value of `key`, or at the table's start if the key is missing.
    pub fn problem(&self, key: &str, text: impl Into<String>) {
        let span = match (self.value(key), &self.table) {
            (Some(value), _) => value.span(),
            (None, Some((_, span))) => span.clone(),
            (None, None) => 0..0,
        };
        self.reading.problem(&span, text.into());
    }

    /// Reports a mistake in the table as a whole.
    pub fn mistake(&self, text: impl Into<String>) {
        let span = self.table.as_ref().map(|(_, span)| span.clone());
        self.reading.problem(&span.unwrap_or_default(), text.into());
    }

    /// Reads keys that belong to one of several alternatives, if it is `chosen`. While describing,
    /// every alternative is chosen, and keys that belong to only one are optional.
    pub fn where_chosen<T>(
        &self,
        chosen: bool,
        build: impl FnOnce(&Self) -> Option<T>,
    ) -> Option<T> {
        if !chosen && !self.reading.describing {
            return None;
        }
        let before = self.reading.conditional.replace(true);
        let built = build(self);
        self.reading.conditional.set(before);
        built
    }

    /// Whether the key is present. While describing, every key is.
    pub fn has(&self, key: &str) -> bool {
        self.reading.describing || self.value(key).is_some()
    }

    fn record(&self, key: &str, kind: Kind, optional: bool) {
        if self.reading.describing {
            let path = self.path_of(key);
            self.reading.keys.borrow_mut().push(Key {
                path,
                kind,
                optional: optional || self.reading.conditional.get(),
            });
        }
    }

    /// The value of `key` as converted by `take`; `form` is the correct form shown in errors.
    fn get<T>(
        &self,
        key: &str,
        form: &str,
        optional: bool,
        take: impl FnOnce(&DeValue<'r>) -> Result<T, Option<String>>,
    ) -> Option<T> {
        let Some(value) = self.value(key) else {
            if !optional && !self.reading.describing {
                let path = self.path_of(key);
                self.problem(
                    key,
                    format!("`{path}` is missing: write it like `{key} = {form}`"),
                );
            }
            return None;
        };
        match take(value.get_ref()) {
            Ok(taken) => Some(taken),
            Err(why) => {
                let path = self.path_of(key);
                let why = why.unwrap_or_else(|| format!("write it like `{key} = {form}`"));
                self.problem(
                    key,
                    format!("`{path}` is {}: {why}", shown(value.get_ref())),
                );
                None
            }
        }
    }

    fn text_of<T>(
        &self,
        key: &str,
        form: &str,
        optional: bool,
        parse: impl FnOnce(&str) -> Result<T, Option<String>>,
    ) -> Option<T> {
        self.get(key, form, optional, |value| match value.as_str() {
            Some(text) => parse(text),
            None => Err(None),
        })
    }

    /// A required text.
    pub fn text(&self, key: &str, example: &str) -> Option<String> {
        self.record(key, Kind::Text, false);
        self.text_of(key, &format!("\"{example}\""), false, |text| {
            Ok(text.to_owned())
        })
    }

    /// An optional text.
    pub fn optional_text(&self, key: &str, example: &str) -> Option<String> {
        self.record(key, Kind::Text, true);
        self.text_of(key, &format!("\"{example}\""), true, |text| {
            Ok(text.to_owned())
        })
    }

    /// A required text of a checked form.
    pub fn parsed<T: FromStr<Err: fmt::Display>>(&self, key: &str, example: &str) -> Option<T> {
        self.record(key, Kind::Text, false);
        self.text_of(key, &format!("\"{example}\""), false, |text| {
            text.parse().map_err(|why: T::Err| Some(why.to_string()))
        })
    }

    /// An optional text of a checked form.
    pub fn optional_parsed<T: FromStr<Err: fmt::Display>>(
        &self,
        key: &str,
        example: &str,
    ) -> Option<T> {
        self.record(key, Kind::Text, true);
        self.text_of(key, &format!("\"{example}\""), true, |text| {
            text.parse().map_err(|why: T::Err| Some(why.to_string()))
        })
    }

    /// A list of texts of a checked form; empty if omitted.
    pub fn list<T: FromStr<Err: fmt::Display>>(&self, key: &str, example: &str) -> Vec<T> {
        self.record(key, Kind::List, true);
        self.list_of(key, example, true).unwrap_or_default()
    }

    /// A required list of texts of a checked form, not empty.
    pub fn filled_list<T: FromStr<Err: fmt::Display>>(
        &self,
        key: &str,
        example: &str,
    ) -> Option<Vec<T>> {
        self.record(key, Kind::List, false);
        let items = self.list_of(key, example, false)?;
        if items.is_empty() {
            let path = self.path_of(key);
            self.problem(
                key,
                format!("`{path}` is empty: write it like `{key} = [\"{example}\"]`"),
            );
            return None;
        }
        Some(items)
    }

    fn list_of<T: FromStr<Err: fmt::Display>>(
        &self,
        key: &str,
        example: &str,
        optional: bool,
    ) -> Option<Vec<T>> {
        let parse = |item: &Spanned<DeValue<'_>>| {
            let text = item.get_ref().as_str().ok_or(None)?;
            text.parse().map_err(|why: T::Err| Some(why.to_string()))
        };
        self.get(
            key,
            &format!("[\"{example}\"]"),
            optional,
            |value| match value.as_array() {
                Some(items) => items.iter().map(parse).collect(),
                None => Err(None),
            },
        )
    }

    /// `true` or `false`; `otherwise` if omitted.
    pub fn flag(&self, key: &str, otherwise: bool) -> bool {
        self.record(key, Kind::Flag, true);
        self.get(key, "true", true, |value| value.as_bool().ok_or(None))
            .unwrap_or(otherwise)
    }

    /// A whole number within bounds.
    pub fn number(&self, key: &str, bounds: RangeInclusive<u64>) -> Option<u64> {
        self.record(key, Kind::Number(*bounds.start(), *bounds.end()), false);
        self.get(key, &bounds.start().to_string(), false, |value| {
            let DeValue::Integer(number) = value else {
                return Err(None);
            };
            let number = u64::from_str_radix(number.as_str(), number.radix()).ok();
            number
                .filter(|number| bounds.contains(number))
                .ok_or_else(|| {
                    Some(format!(
                        "must be between {} and {}",
                        bounds.start(),
                        bounds.end()
                    ))
                })
        })
    }

    /// A duration within bounds.
    pub fn duration(&self, key: &str, bounds: RangeInclusive<Duration>) -> Option<Duration> {
        self.record(key, Kind::Duration(*bounds.start(), *bounds.end()), false);
        self.duration_of(key, bounds, false)
    }

    /// An optional duration within bounds.
    pub fn duration_or(
        &self,
        key: &str,
        bounds: RangeInclusive<Duration>,
        otherwise: Duration,
    ) -> Duration {
        self.record(key, Kind::Duration(*bounds.start(), *bounds.end()), true);
        self.duration_of(key, bounds, true).unwrap_or(otherwise)
    }

    fn duration_of(
        &self,
        key: &str,
        bounds: RangeInclusive<Duration>,
        optional: bool,
    ) -> Option<Duration> {
        self.text_of(key, "\"30s\"", optional, |text| {
            let duration = humantime::parse_duration(text)
                .map_err(|_cause| Some(format!("a duration has a unit, like `{key} = \"30s\"`")))?;
            let (least, most) = (*bounds.start(), *bounds.end());
            if bounds.contains(&duration) {
                Ok(duration)
            } else {
                Err(Some(format!(
                    "must be between {} and {}",
                    human(least),
                    human(most)
                )))
            }
        })
    }

    /// An amount of data.
    pub fn bytes(&self, key: &str) -> Option<Bytes> {
        self.record(key, Kind::Bytes, false);
        self.text_of(key, "\"16MiB\"", false, |text| {
            text.parse()
                .map_err(|why: super::units::UnitError| Some(why.to_string()))
        })
    }

    /// One of several words.
    pub fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let names: Vec<String> = words.iter().map(|(word, _)| (*word).to_owned()).collect();
        let form = names
            .first()
            .map(|word| format!("\"{word}\""))
            .unwrap_or_default();
        self.record(key, Kind::Choice(names.clone()), false);
        self.text_of(key, &form, false, |text| {
            let found = words
                .iter()
                .find(|(word, _)| *word == text)
                .map(|(_, value)| *value);
            found.ok_or_else(|| Some(format!("must be one of {}", names.join(", "))))
        })
    }

    /// A required table.
    pub fn section(&self, key: &str) -> Section<'r> {
        self.record(key, Kind::Table, false);
        self.table(key)
    }

    fn table(&self, key: &str) -> Section<'r> {
        let table = self.get(key, "…", true, |value| {
            value.as_table().map(|_| ()).ok_or(None)
        });
        if table.is_none() && self.value(key).is_none() && !self.reading.describing {
            let path = self.path_of(key);
            self.problem(key, format!("the table `[{path}]` is missing"));
        }
        self.sub(key, self.path_of(key))
    }

    /// An optional table.
    pub fn optional_section(&self, key: &str) -> Option<Section<'r>> {
        self.record(key, Kind::Table, true);
        self.has(key).then(|| self.table(key))
    }

    fn sub(&self, key: &str, path: String) -> Section<'r> {
        let table = self.value(key).and_then(|value| {
            value
                .get_ref()
                .as_table()
                .map(|table| (table, value.span()))
        });
        Section::new(self.reading, path, table)
    }

    /// Tables under names that the author chooses, sorted by name.
    pub fn named(&self, key: &str) -> Vec<(String, Section<'r>)> {
        let outer = self.section(key);
        if self.reading.describing {
            outer.record("*", Kind::Table, true);
            let path = format!("{}.*", outer.path);
            return vec![("*".to_owned(), Section::new(self.reading, path, None))];
        }
        let Some((table, _)) = &outer.table else {
            return Vec::new();
        };
        let names: Vec<String> = table
            .iter()
            .map(|(name, _)| name.get_ref().to_string())
            .collect();
        names
            .into_iter()
            .map(|name| {
                let inner = outer.section(&name);
                (name, inner)
            })
            .collect()
    }

    /// A list of tables (`[[key]]`); empty if omitted.
    pub fn each(&self, key: &str) -> Vec<Section<'r>> {
        self.record(key, Kind::Tables, true);
        let path = format!("{}[]", self.path_of(key));
        if self.reading.describing {
            return vec![Section::new(self.reading, path, None)];
        }
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let Some(items) = value.get_ref().as_array() else {
            self.problem(
                key,
                format!(
                    "`{path}` is not a list of tables: begin each with `[[{}]]`",
                    self.path_of(key)
                ),
            );
            return Vec::new();
        };
        let tables = items.iter().map(|item| {
            let table = item.get_ref().as_table().map(|table| (table, item.span()));
            Section::new(self.reading, path.clone(), table)
        });
        tables.collect()
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        let Some((table, _)) = &self.table else {
            return;
        };
        let known = self.known.borrow();
        for (name, _) in *table {
            if !known.contains(name.get_ref().as_ref()) {
                let near = nearest(name.get_ref(), &known);
                let hint = near
                    .map(|word| format!(", did you mean `{word}`?"))
                    .unwrap_or_default();
                let path = self.path_of(name.get_ref());
                self.reading
                    .problem(&name.span(), format!("unknown key `{path}`{hint}"));
            }
        }
    }
}

/// A duration in the form that files use.
pub fn human(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("\"{}\"", text.chars().take(60).collect::<String>()),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(flag) => format!("the flag {flag}"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// The known word closest to a misspelt one.
fn nearest<'k>(word: &str, known: &'k BTreeSet<String>) -> Option<&'k str> {
    let scored = known
        .iter()
        .map(|candidate| (distance(word, candidate), candidate.as_str()));
    scored
        .filter(|(distance, _)| *distance <= 3)
        .min()
        .map(|(_, candidate)| candidate)
}

/// The edit distance between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut left = i.saturating_add(1);
        let mut next = vec![left];
        for ((other, above), diagonal) in b.iter().zip(row.iter().skip(1)).zip(row.iter()) {
            let swap = diagonal.saturating_add(usize::from(*other != letter));
            left = swap
                .min(above.saturating_add(1))
                .min(left.saturating_add(1));
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> Result<Duration, String> {
        let bounds = Duration::from_secs(5)..=Duration::from_secs(600);
        read("f.toml", text, |root| {
            root.section("detect")
                .duration("fail_after", bounds.clone())
        })
        .map_err(|problems| problems.to_string())
    }

    #[test]
    fn each_mistake_names_file_line_and_right_form() {
        for (text, expected) in [
            (
                "[detect]\nfail_after = 30",
                "f.toml:2: `detect.fail_after` is the number 30: write it like `fail_after = \"30s\"`",
            ),
            (
                "[detect]\nfail_after = \"30\"",
                "f.toml:2: `detect.fail_after` is \"30\": a duration has a unit, like `fail_after = \"30s\"`",
            ),
            (
                "[detect]\nfail_after = \"1s\"",
                "f.toml:2: `detect.fail_after` is \"1s\": must be between 5s and 10m",
            ),
            (
                "[detect]\nfail_aftr = \"30s\"",
                "f.toml:1: `detect.fail_after` is missing: write it like `fail_after = \"30s\"`\nf.toml:2: unknown key `detect.fail_aftr`, did you mean `fail_after`?",
            ),
            (
                "",
                "f.toml:1: the table `[detect]` is missing\nf.toml:1: `detect.fail_after` is missing: write it like `fail_after = \"30s\"`",
            ),
        ] {
            assert_eq!(seconds(text).unwrap_err(), expected);
        }
        assert!(
            seconds("[detect]\nfail_after = ")
                .unwrap_err()
                .starts_with("f.toml:2: ")
        );
        assert_eq!(
            seconds("[detect]\nfail_after = \"30s\""),
            Ok(Duration::from_secs(30))
        );
    }

    #[test]
    fn the_reading_code_describes_itself() {
        let keys = describe(|root| {
            for (_, site) in root.named("sites") {
                site.text("agent", "10.0.0.1:7401");
            }
            root.each("traffic")
                .first()
                .map(|each| each.flag("on", true))
        });
        let paths: Vec<_> = keys.iter().map(|key| key.path.as_str()).collect();
        let expected = [
            "sites",
            "sites.*",
            "sites.*.agent",
            "traffic",
            "traffic[].on",
        ];
        assert_eq!(paths, expected);
    }

    /// A shape of a kind: each kind has `name` and one key of its own.
    fn shape(root: &Section<'_>) -> Option<String> {
        let kind = root.choice("kind", &[("disc", 1), ("square", 2)]);
        let disc = root.where_chosen(kind == Some(1), |at| at.text("radius", "1"));
        let square = root.where_chosen(kind == Some(2), |at| at.text("side", "1"));
        disc.or(square)
    }

    #[test]
    fn keys_of_another_choice_are_no_keys() {
        let read_shape = |text| read("f.toml", text, shape).map_err(|all| all.to_string());
        assert_eq!(
            read_shape("kind = \"disc\"\nradius = \"2\""),
            Ok("2".to_owned())
        );
        assert_eq!(
            read_shape("kind = \"disc\"\nradius = \"2\"\nside = \"3\"").unwrap_err(),
            "f.toml:3: unknown key `side`, did you mean `kind`?"
        );
        let keys = describe(shape);
        let optional: Vec<_> = keys
            .iter()
            .map(|key| (key.path.as_str(), key.optional))
            .collect();
        assert_eq!(
            optional,
            [("kind", false), ("radius", true), ("side", true)]
        );
    }

    #[test]
    fn a_list_that_must_hold_something_is_refused_empty_and_missing() {
        let read_list = |text| {
            read("f.toml", text, |root| {
                let list = root.filled_list::<u8>("ports", "1");
                let one = root.optional_parsed::<u8>("one", "1");
                Some((list?, one))
            })
            .map_err(|all| all.to_string())
        };
        assert_eq!(read_list("ports = [\"1\"]"), Ok((vec![1], None)));
        assert_eq!(
            read_list("ports = [\"1\"]\none = \"2\""),
            Ok((vec![1], Some(2)))
        );
        for (text, said) in [
            ("", "`ports` is missing: write it like `ports = [\"1\"]`"),
            (
                "ports = []",
                "`ports` is empty: write it like `ports = [\"1\"]`",
            ),
            ("ports = [\"a\"]", "`ports` is a list: invalid digit"),
            (
                "ports = [\"1\"]\none = \"x\"",
                "`one` is \"x\": invalid digit",
            ),
        ] {
            let answer = read_list(text).unwrap_err();
            assert!(answer.contains(said), "{answer}");
        }
    }

    #[test]
    fn the_distance_counts_letters() {
        assert_eq!(distance("fail_aftr", "fail_after"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }
}
