//! The tables in the documents: every event, every key of the configuration.

use std::fmt::Write as _;

use carillon_domain::contract::{ALL_PATHS, COMMANDS, EVENTS};
use schemars::Schema;
use serde_json::Value;

use crate::config::Config;

/// Every event in one table.
pub(super) fn events() -> String {
    let mut text =
        String::from("| Event | Direction | Payload | To | Namespaces |\n|---|---|---|---|---|\n");
    for route in COMMANDS.iter().copied().flatten() {
        row(&mut text, route.name, "→ server", &keys(&(route.payload)()), "", route.paths);
    }
    for event in EVENTS.iter().copied().flatten() {
        let whom =
            if event.durable { format!("{}, durable", event.whom) } else { event.whom.into() };
        row(&mut text, event.name, "→ client", &keys(&(event.payload)()), &whom, event.paths);
    }
    text
}

fn row(text: &mut String, name: &str, direction: &str, keys: &str, whom: &str, paths: &[&str]) {
    let paths = if paths.len() == ALL_PATHS.len() { "all".into() } else { code_list(paths) };
    // Writing to a string does not fail.
    let _ = writeln!(text, "| `{name}` | {direction} | {keys} | {whom} | {paths} |");
}

fn code_list(items: &[&str]) -> String {
    items.iter().map(|item| format!("`{item}`")).collect::<Vec<_>>().join(" ")
}

/// The keys of a payload; optional ones with a question mark.
fn keys(schema: &Schema) -> String {
    let mut schema = schema.clone().to_value();
    if let Some(name) =
        schema.get("$ref").and_then(Value::as_str).and_then(|r| r.rsplit('/').next())
    {
        schema = schema["$defs"][name].clone();
    }
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let Some(properties) = schema["properties"].as_object() else { return "none".into() };
    if properties.is_empty() {
        return "none".into();
    }
    let mark = |name: &String| if required.iter().any(|one| one == name) { "" } else { "?" };
    properties.keys().map(|name| format!("`{name}`{}", mark(name))).collect::<Vec<_>>().join(", ")
}

/// Every key of the configuration, its default and its meaning.
pub(super) fn configuration() -> anyhow::Result<String> {
    let schema = schemars::schema_for!(Config).to_value();
    let defaults = serde_json::to_value(Config::default())?;
    let mut text = String::new();
    for (section, of) in schema["properties"].as_object().into_iter().flatten() {
        let (name, is_list) = match of.get("items") {
            Some(items) => (&items["$ref"], true),
            None => (&of["$ref"], false),
        };
        let Some(name) = name.as_str().and_then(|name| name.rsplit('/').next()) else { continue };
        let heading = if is_list { format!("[[{section}]]") } else { format!("[{section}]") };
        let described = of.get("description").or_else(|| schema["$defs"][name].get("description"));
        writeln!(text, "### `{heading}`\n")?;
        if let Some(described) = described.and_then(Value::as_str) {
            writeln!(text, "{}\n", one_line(described))?;
        }
        writeln!(text, "| Key | Default | Meaning |\n|---|---|---|")?;
        keys_of(&mut text, &schema["$defs"], name, "", &defaults[section])?;
        text.push('\n');
    }
    Ok(text.trim_end().to_owned() + "\n")
}

fn keys_of(
    text: &mut String,
    definitions: &Value,
    name: &str,
    prefix: &str,
    defaults: &Value,
) -> anyhow::Result<()> {
    for (key, of) in definitions[name]["properties"].as_object().into_iter().flatten() {
        let nested = of["items"]["$ref"].as_str().or_else(|| of["$ref"].as_str());
        let nested = nested.and_then(|target| target.rsplit('/').next());
        let nested = nested.filter(|name| definitions[*name]["properties"].is_object());
        let meaning = of.get("description").and_then(Value::as_str).map(one_line);
        let default = match &defaults[key] {
            Value::Null => of.get("default").map(Value::to_string).unwrap_or_default(),
            Value::Object(all) => all
                .iter()
                .map(|(name, value)| format!("{name} = {value}"))
                .collect::<Vec<_>>()
                .join(", "),
            value => value.to_string(),
        };
        let default = if default.is_empty() || nested.is_some() {
            String::new()
        } else {
            format!("`{default}`")
        };
        writeln!(text, "| `{prefix}{key}` | {default} | {} |", meaning.unwrap_or_default())?;
        if let Some(nested) = nested {
            keys_of(text, definitions, nested, &format!("{prefix}{key}."), &Value::Null)?;
        }
    }
    Ok(())
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}
