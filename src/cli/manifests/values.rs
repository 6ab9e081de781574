//! The values of a chart: a file laid over the defaults, and checked against the schema.
//!
//! Of JSON Schema only the words that `values.schema.json` uses are known; one that is not is an error and
//! never passed over. `pattern` alone is left to the readers of the files themselves, which say more.

use anyhow::Context;
use serde_json::{Map, Value};

use super::chart;

/// Words that say nothing about what is allowed.
const REMARKS: [&str; 5] = ["$schema", "title", "description", "definitions", "pattern"];

/// Reads a file of values. Every mistake is reported, with the path of what is wrong.
pub fn read(file: &str, text: &str) -> anyhow::Result<Value> {
    let defaults: Value =
        serde_saphyr::from_str(chart::VALUES).context("read the chart's values")?;
    let given: Value = serde_saphyr::from_str(text).with_context(|| format!("read `{file}`"))?;
    let schema: Value = serde_json::from_str(chart::SCHEMA).context("read the chart's schema")?;
    // A file without a word in it is one without values.
    let values = if given.is_null() {
        defaults
    } else {
        laid_over(defaults, given)
    };
    let found = mistakes(&schema, &values);
    anyhow::ensure!(
        found.is_empty(),
        "`{file}` does not fit the chart:\n{}\n\nhint: deploy/helm/failover/values.yaml explains each value",
        found.join("\n")
    );
    Ok(values)
}

/// Tables are merged, all else is replaced, and `null` takes a default away: as Helm does it.
fn laid_over(below: Value, above: Value) -> Value {
    match (below, above) {
        (Value::Object(mut below), Value::Object(above)) => {
            for (key, value) in above {
                if value.is_null() {
                    below.remove(&key);
                    continue;
                }
                let under = below.remove(&key).unwrap_or_default();
                below.insert(key, laid_over(under, value));
            }
            Value::Object(below)
        }
        (_, above) => above,
    }
}

/// What a schema says against a value: a line each, with the path.
pub fn mistakes(schema: &Value, value: &Value) -> Vec<String> {
    mistakes_at(schema, schema, value)
}

struct Check<'s> {
    root: &'s Value,
    found: Vec<String>,
}

impl<'s> Check<'s> {
    fn say(&mut self, path: &str, text: impl std::fmt::Display) {
        let path = if path.is_empty() { "the file" } else { path };
        self.found.push(format!("{path}: {text}"));
    }

    fn value(&mut self, path: &str, schema: &'s Value, value: &Value) {
        let Some(rules) = schema.as_object() else {
            if schema == &Value::Bool(false) {
                self.say(path, "there is no such value");
            }
            return;
        };
        if let Some(place) = rules.get("$ref").and_then(Value::as_str) {
            let place = place.trim_start_matches('#');
            return match self.root.pointer(place) {
                Some(schema) => self.value(path, schema, value),
                None => self.say(path, format!("the schema has no `{place}`")),
            };
        }
        if let Some(expected) = rules.get("type").filter(|it| !is_of(it, value)) {
            // What else would be said about it follows from this.
            return self.say(path, format!("must be {}", words(expected)));
        }
        for (word, rule) in rules {
            self.rule(path, rules, (word, rule), value);
        }
    }

    fn rule(
        &mut self,
        path: &str,
        rules: &'s Map<String, Value>,
        (word, rule): (&str, &'s Value),
        value: &Value,
    ) {
        let size = match value {
            Value::Array(list) => list.len(),
            Value::Object(table) => table.len(),
            Value::String(text) => text.chars().count(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        };
        let too_small = |rule: &Value| rule.as_u64().is_some_and(|least| (size as u64) < least);
        match word {
            "properties" | "additionalProperties" | "items" | "required" => {
                self.inside(path, rules, (word, rule), value);
            }
            "if" => {
                let fits = mistakes_at(self.root, rule, value).is_empty();
                if let Some(then) = rules.get("then").filter(|_| fits) {
                    self.value(path, then, value);
                }
            }
            "enum" if !rule.as_array().is_some_and(|all| all.contains(value)) => {
                self.say(path, format!("must be one of {}", words(rule)));
            }
            "const" if rule != value => self.say(path, format!("must be {rule}")),
            "minimum" if value.as_f64() < rule.as_f64() => {
                self.say(path, format!("must be at least {rule}"));
            }
            "maximum" if value.as_f64() > rule.as_f64() => {
                self.say(path, format!("must be at most {rule}"));
            }
            "minLength" | "minItems" | "minProperties" if too_small(rule) => {
                self.say(path, "must not be empty");
            }
            "type" | "then" | "enum" | "const" | "minimum" | "maximum" | "minLength"
            | "minItems" | "minProperties" => {}
            word if REMARKS.contains(&word) => {}
            word => self.say(
                path,
                format!("the schema says `{word}`, which is not known here"),
            ),
        }
    }

    fn inside(
        &mut self,
        path: &str,
        rules: &'s Map<String, Value>,
        (word, rule): (&str, &'s Value),
        value: &Value,
    ) {
        let below = |key: &str| match path {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        };
        match (word, value) {
            ("required", Value::Object(table)) => {
                let names = rule.as_array().into_iter().flatten();
                for name in names.filter_map(Value::as_str) {
                    if !table.contains_key(name) {
                        self.say(&below(name), "is missing");
                    }
                }
            }
            ("properties", Value::Object(table)) => {
                for (key, schema) in rule.as_object().into_iter().flatten() {
                    if let Some(value) = table.get(key) {
                        self.value(&below(key), schema, value);
                    }
                }
            }
            ("additionalProperties", Value::Object(table)) => {
                let named = rules.get("properties").and_then(Value::as_object);
                let other = |key: &str| !named.is_some_and(|named| named.contains_key(key));
                for (key, value) in table.iter().filter(|(key, _)| other(key)) {
                    self.value(&below(key), rule, value);
                }
            }
            ("items", Value::Array(list)) => {
                for (index, value) in list.iter().enumerate() {
                    self.value(&format!("{path}[{index}]"), rule, value);
                }
            }
            _ => {}
        }
    }
}

fn mistakes_at<'s>(root: &'s Value, schema: &'s Value, value: &Value) -> Vec<String> {
    let found = Vec::new();
    let mut check = Check { root, found };
    check.value("", schema, value);
    check.found
}

/// Whether a value is of a type, or of one of several.
fn is_of(types: &Value, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some(_) | None => false,
    };
    types
        .as_array()
        .map_or_else(|| is(types), |all| all.iter().any(is))
}

/// A word of the schema, or several, for people.
fn words(rule: &Value) -> String {
    let one = |word: &Value| match word.as_str() {
        Some("object") => "a table".to_owned(),
        Some("array") => "a list".to_owned(),
        Some("string") => "a text (in quotes, if it looks like a number)".to_owned(),
        Some("boolean") => "true or false".to_owned(),
        Some("integer") => "a whole number".to_owned(),
        Some(word) => format!("`{word}`"),
        None => word.to_string(),
    };
    match rule.as_array() {
        Some(all) => all.iter().map(one).collect::<Vec<_>>().join(", "),
        None => one(rule),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_file_is_laid_over_the_defaults() {
        let below = json!({"a": {"x": 1, "y": 2, "z": 3}, "list": [1, 2], "kept": true});
        let above = json!({"a": {"x": 5, "z": null, "new": {"w": 1}}, "list": [3]});
        let expected = json!({"a": {"x": 5, "y": 2, "new": {"w": 1}}, "list": [3], "kept": true});
        assert_eq!(laid_over(below, above), expected);
    }

    #[test]
    fn each_word_of_a_schema_is_obeyed() {
        for (schema, good, bad, said) in [
            (
                json!({"type": "string"}),
                json!("a"),
                json!(1),
                "must be a text",
            ),
            (
                json!({"type": ["integer", "string"]}),
                json!(1),
                json!(1.5),
                "a whole number, a text",
            ),
            (
                json!({"enum": ["a", "b"]}),
                json!("b"),
                json!("c"),
                "must be one of `a`, `b`",
            ),
            (
                json!({"const": true}),
                json!(true),
                json!(false),
                "must be true",
            ),
            (json!({"minimum": 1}), json!(1), json!(0), "at least 1"),
            (json!({"maximum": 2}), json!(2), json!(3), "at most 2"),
            (
                json!({"minLength": 1}),
                json!("a"),
                json!(""),
                "must not be empty",
            ),
            (
                json!({"minItems": 1}),
                json!(["a"]),
                json!([]),
                "must not be empty",
            ),
            (
                json!({"minProperties": 1}),
                json!({"a": 1}),
                json!({}),
                "must not be empty",
            ),
            (
                json!({"required": ["a"]}),
                json!({"a": 1}),
                json!({}),
                "a: is missing",
            ),
            (
                json!({"properties": {"a": {}}, "additionalProperties": false}),
                json!({"a": 1}),
                json!({"b": 1}),
                "b: there is no such value",
            ),
            (
                json!({"additionalProperties": {"type": "string"}}),
                json!({"a": "x"}),
                json!({"a": 1}),
                "a: must be a text",
            ),
            (
                json!({"items": {"type": "string"}}),
                json!(["a"]),
                json!(["a", 1]),
                "[1]: must be a text",
            ),
            (
                json!({"$ref": "#/definitions/d", "definitions": {"d": {"type": "array"}}}),
                json!([]),
                json!({}),
                "must be a list",
            ),
            (
                json!({"if": {"properties": {"on": {"const": true}}}, "then": {"required": ["a"]}}),
                json!({"on": false}),
                json!({"on": true}),
                "a: is missing",
            ),
        ] {
            assert_eq!(mistakes(&schema, &good), Vec::<String>::new(), "{schema}");
            let found = mistakes(&schema, &bad).join("\n");
            assert!(found.contains(said), "{schema}: {found}");
        }
    }

    #[test]
    fn a_word_that_is_not_known_is_never_passed_over() {
        let found = mistakes(&json!({"not": {}}), &json!(1)).join("\n");
        assert!(found.contains("`not`"), "{found}");
        let found = mistakes(&json!({"$ref": "#/definitions/away"}), &json!(1)).join("\n");
        assert!(found.contains("/definitions/away"), "{found}");
    }
}
