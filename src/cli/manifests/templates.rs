//! Go templates with the few functions that the chart uses of those that Helm adds. Each answers as Helm's
//! does: a test compares the manifests of both.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};

use anyhow::Context;
use gotmpl::{FuncMap, MissingKey, Template, TemplateError, Value as Datum};
use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

type Answer = Result<Datum, TemplateError>;

/// The templates that `include` finds. It is one of the functions that they are parsed with, so it is
/// set afterwards.
type Named = OnceLock<Template>;

/// Renders a template, beside the named ones that it may include.
pub fn render(name: &str, text: &str, named: &str, data: &Value) -> anyhow::Result<String> {
    let included: Arc<Named> = Arc::new(OnceLock::new());
    let parse = || {
        let template = Template::new(name).funcs(functions(&included));
        let template = template.missing_key(MissingKey::ZeroValue);
        let parsed = template.parse(named).and_then(|with| with.parse(text));
        parsed.with_context(|| format!("parse the chart's `{name}`"))
    };
    // A template that a function can reach may define what it includes, so both know all.
    let template = parse()?;
    included.get_or_init(|| template);
    let data = gotmpl::to_value(data).context("pass the values to the templates")?;
    parse()?
        .execute_to_string(&data)
        .with_context(|| format!("render the chart's `{name}`"))
}

fn functions(included: &Arc<Named>) -> FuncMap {
    let mut functions = FuncMap::new();
    let mut add = |name: &str, function: fn(&[Datum]) -> Answer| {
        functions.insert(name.to_owned(), Arc::new(function));
    };
    add("dict", dict);
    add("list", |args| Ok(Datum::List(args.into())));
    add("has", |args| {
        let [wanted, Datum::List(list)] = args else {
            return wrong("has", "something and a list");
        };
        Ok(Datum::Bool(
            list.iter().any(|one| json(one) == json(wanted)),
        ))
    });
    add("kindIs", |args| {
        let [Datum::String(kind), value] = args else {
            return wrong("kindIs", "a kind and a value");
        };
        Ok(Datum::Bool(kind_of(value) == Some(kind)))
    });
    add("nindent", |args| {
        let [Datum::Int(width), Datum::String(text)] = args else {
            return wrong("nindent", "a width and a text");
        };
        let margin = format!(
            "\n{}",
            " ".repeat(usize::try_from(*width).unwrap_or_default())
        );
        Ok(text_of(format!("{margin}{}", text.replace('\n', &margin))))
    });
    add("required", |args| {
        let [Datum::String(why), value] = args else {
            return wrong("required", "a message and a value");
        };
        if matches!(value, Datum::Nil) || value.as_str() == Some("") {
            return Err(TemplateError::Exec(why.to_string()));
        }
        Ok(value.clone())
    });
    add("sha256sum", |args| {
        let [Datum::String(text)] = args else {
            return wrong("sha256sum", "a text");
        };
        let digest = Sha256::digest(text.as_bytes());
        Ok(text_of(data_encoding::HEXLOWER.encode(&digest)))
    });
    add("toJson", to_json);
    add("trim", |args| {
        let [Datum::String(text)] = args else {
            return wrong("trim", "a text");
        };
        Ok(text_of(text.trim().to_owned()))
    });
    let included = Arc::downgrade(included);
    functions.insert(
        "include".to_owned(),
        Arc::new(move |args| include(&included, args)),
    );
    functions
}

/// The text of a named template.
fn include(included: &Weak<Named>, args: &[Datum]) -> Answer {
    let [Datum::String(name), data] = args else {
        return wrong("include", "a name and a value");
    };
    let named = included.upgrade();
    let Some(named) = named.as_deref().and_then(OnceLock::get) else {
        return Err(TemplateError::Exec(
            "`include` before all is parsed".to_owned(),
        ));
    };
    Ok(text_of(named.execute_template_to_string(name, data)?))
}

fn dict(args: &[Datum]) -> Answer {
    let mut entries = BTreeMap::new();
    for pair in args.chunks(2) {
        let [Datum::String(key), value] = pair else {
            return wrong("dict", "keys, each with a value");
        };
        entries.insert(Arc::clone(key), value.clone());
    }
    Ok(Datum::Map(Arc::new(entries)))
}

/// As Go's encoder writes it, which escapes what HTML would read.
fn to_json(args: &[Datum]) -> Answer {
    let [value] = args else {
        return wrong("toJson", "a value");
    };
    let mut text = json(value).to_string();
    for (mark, escaped) in [
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('&', "\\u0026"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ] {
        text = text.replace(mark, escaped);
    }
    Ok(text_of(text))
}

/// The word that Go has for it, where the chart asks.
fn kind_of(value: &Datum) -> Option<&'static str> {
    match value {
        Datum::Bool(_) => Some("bool"),
        Datum::String(_) => Some("string"),
        Datum::List(_) => Some("slice"),
        Datum::Map(_) => Some("map"),
        // Helm reads every number as one with a fraction, Go knows many kinds.
        Datum::Nil | Datum::Int(_) | Datum::Uint(_) | Datum::Float(_) | Datum::Function(_) => None,
    }
}

fn json(value: &Datum) -> Value {
    match value {
        Datum::Nil | Datum::Function(_) => Value::Null,
        Datum::Bool(flag) => Value::Bool(*flag),
        Datum::Int(number) => Value::from(*number),
        Datum::Uint(number) => Value::from(*number),
        Datum::Float(number) => Number::from_f64(*number).map_or(Value::Null, Value::Number),
        Datum::String(text) => Value::String(text.to_string()),
        Datum::List(list) => list.iter().map(json).collect(),
        Datum::Map(map) => {
            let entries = map
                .iter()
                .map(|(key, value)| (key.to_string(), json(value)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
    }
}

fn text_of(text: String) -> Datum {
    Datum::String(text.into())
}

fn wrong(function: &str, wanted: &str) -> Answer {
    Err(TemplateError::Exec(format!("`{function}` takes {wanted}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rendered(text: &str) -> anyhow::Result<String> {
        let named = r#"{{ define "pair" }}{{ .a }}
{{ .b }}{{ end }}"#;
        let data = json!({"map": {"b": 2, "a": 1}, "list": ["x", "y"], "text": "<&>", "none": ""});
        render("test", text, named, &data)
    }

    #[test]
    fn each_function_answers_as_helms_does() {
        for (text, expected) in [
            ("{{ toJson .map }}", r#"{"a":1,"b":2}"#),
            ("{{ toJson .text }}", r#""\u003c\u0026\u003e""#),
            ("{{ toJson .missing }}", "null"),
            (r#"{{ include "pair" .map | nindent 2 }}"#, "\n  1\n  2"),
            (
                r#"{{ toJson (dict "k" (list 1 "a")) }}"#,
                r#"{"k":[1,"a"]}"#,
            ),
            (r#"{{ has "y" .list }} {{ has "z" .list }}"#, "true false"),
            (
                r#"{{ kindIs "map" .map }} {{ kindIs "slice" .list }} {{ kindIs "map" .text }}"#,
                "true true false",
            ),
            (r#"{{ required "say it" .text }}"#, "<&>"),
            (
                r#"{{ " a b
 " | trim }}"#,
                "a b",
            ),
            (
                r#"{{ sha256sum "abc" }}"#,
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
        ] {
            assert_eq!(rendered(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_required_and_what_is_misused_ends_with_a_reason() {
        for (text, reason) in [
            (r#"{{ required "say it" .none }}"#, "say it"),
            (r#"{{ required "say it" .missing }}"#, "say it"),
            (r#"{{ nindent "two" .text }}"#, "takes a width and a text"),
            (r#"{{ dict "odd" }}"#, "takes keys"),
            ("{{ toYaml .map }}", "toYaml"),
        ] {
            let said = format!("{:#}", rendered(text).unwrap_err());
            assert!(said.contains(reason), "{text}: {said}");
        }
    }
}
