//! `docs/asyncapi.json`: every event, its payload and its reply, as AsyncAPI 3.

use carillon_domain::{
    contract::{COMMANDS, EVENTS},
    refusal::Told,
};
use serde_json::{Map, Value, json};

pub(super) fn document() -> anyhow::Result<String> {
    let (mut messages, mut operations) = (Map::new(), Map::new());
    let mut schemas = Map::new();
    for route in COMMANDS.iter().copied().flatten() {
        let id = format!("client.{}", route.name);
        let mut message = message(route.name, (route.payload)().to_value(), &mut schemas);
        message["examples"] =
            json!([{ "payload": serde_json::from_str::<Value>(&(route.example)())? }]);
        message["x-namespaces"] = json!(route.paths);
        message["x-acknowledgement"] = hoist((route.reply)().to_value(), &mut schemas);
        message["x-limits"] = json!({
            "class": route.policy.class.as_str(),
            "maxBytes": route.policy.max_bytes,
        });
        operations.insert(id.clone(), operation("receive", &id));
        messages.insert(id, message);
    }
    for row in EVENTS.iter().copied().flatten() {
        let id = format!("server.{}", row.name);
        let mut message = message(row.name, (row.payload)().to_value(), &mut schemas);
        message["x-namespaces"] = json!(row.paths);
        message["x-to"] = json!(row.whom);
        message["x-durable"] = json!(row.durable);
        operations.insert(id.clone(), operation("send", &id));
        messages.insert(id, message);
    }
    let refused = hoist(schemars::schema_for!(Told<'static>).to_value(), &mut schemas);
    schemas.insert("Refused".into(), refused);
    let document = json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Carillon",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Socket.IO 5 events. An event sent with a callback is answered with \
                {\"ok\":true,…} or {\"ok\":false,…Refused}; without one, refusals come as the \
                event \"error\".",
        },
        "channels": {
            "socket": { "address": "/socket.io/", "messages": messages },
        },
        "operations": operations,
        "components": { "schemas": schemas },
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn message(name: &str, schema: Value, schemas: &mut Map<String, Value>) -> Value {
    json!({ "name": name, "payload": hoist(schema, schemas) })
}

fn operation(action: &str, message: &str) -> Value {
    json!({
        "action": action,
        "channel": { "$ref": "#/channels/socket" },
        "messages": [{ "$ref": format!("#/channels/socket/messages/{message}") }],
    })
}

/// Moves a schema's definitions to the document's components.
fn hoist(mut schema: Value, schemas: &mut Map<String, Value>) -> Value {
    if let Some(object) = schema.as_object_mut() {
        object.remove("$schema");
        if let Some(Value::Object(definitions)) = object.remove("$defs") {
            for (name, mut definition) in definitions {
                relocate(&mut definition);
                schemas.insert(name, definition);
            }
        }
    }
    relocate(&mut schema);
    schema
}

pub(super) fn relocate(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(target) if name == "$ref" => {
                        *target = target.replace("#/$defs/", "#/components/schemas/");
                    }
                    value => relocate(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(relocate),
        _ => {}
    }
}
