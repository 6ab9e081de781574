//! The JSON schema (draft 2020-12) of a file, from the keys that its reader asks for. For editors:
//! the reader itself checks more, and says it better.

use serde_json::{Value, json};

use crate::engine::document::{Key, Kind, human};

/// The schema of a file with these keys. No other key is allowed; what belongs to one choice among
/// several is optional here.
pub fn schema(title: &str, keys: &[Key]) -> Value {
    let mut root = object();
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    root["title"] = title.into();
    for key in keys {
        let steps: Vec<&str> = key.path.split('.').collect();
        place(&mut root, &steps, key);
    }
    root
}

fn object() -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": {}, "required": [] })
}

/// Puts a key where its path says. A table is a key itself and comes before what is in it.
fn place(table: &mut Value, steps: &[&str], key: &Key) {
    match steps {
        [] => {}
        ["*"] => table["additionalProperties"] = form(&key.kind),
        ["*", rest @ ..] => place(&mut table["additionalProperties"], rest, key),
        [name] => {
            table["properties"][*name] = form(&key.kind);
            if let (false, Value::Array(names)) = (key.optional, &mut table["required"]) {
                names.push((*name).into());
            }
        }
        [name, rest @ ..] => match name.strip_suffix("[]") {
            Some(list) => place(&mut table["properties"][list]["items"], rest, key),
            None => place(&mut table["properties"][*name], rest, key),
        },
    }
}

fn form(kind: &Kind) -> Value {
    match kind {
        Kind::Text => json!({ "type": "string" }),
        Kind::List => json!({ "type": "array", "items": { "type": "string" } }),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Number(least, most) => {
            json!({ "type": "integer", "minimum": least, "maximum": most })
        }
        Kind::Duration(least, most) => json!({
            "type": "string",
            "pattern": "^([0-9]+ ?[a-zA-Z]+ ?)+$",
            "description": format!("a duration between {} and {}", human(*least), human(*most)),
        }),
        Kind::Bytes => json!({ "type": "string", "pattern": "^ *[0-9]+ *([KMGT]iB|B)? *$" }),
        Kind::Choice(words) => json!({ "enum": words }),
        Kind::Table => object(),
        Kind::Tables => json!({ "type": "array", "items": object() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::document::describe;

    #[test]
    fn tables_names_and_lists_nest() {
        let keys = describe(|root| {
            for (name, site) in root.named("sites") {
                site.text("agent", "a");
                root.section("addresses").filled_list::<String>(&name, "b");
            }
            for each in root.each("traffic") {
                each.flag("on", true);
            }
            Some(())
        });
        let schema = schema("t", &keys);
        assert_eq!(schema["required"], json!(["sites", "addresses"]));
        let site = &schema["properties"]["sites"]["additionalProperties"];
        assert_eq!(site["required"], json!(["agent"]));
        assert_eq!(site["properties"]["agent"], json!({ "type": "string" }));
        let addresses = &schema["properties"]["addresses"];
        assert_eq!(addresses["additionalProperties"]["type"], "array");
        assert_eq!(addresses["required"], json!([]));
        let on = &schema["properties"]["traffic"]["items"]["properties"]["on"];
        assert_eq!(on["type"], "boolean");
    }
}
