//! `docs/openapi.json` and `/v1/openapi.json`: the server API as OpenAPI 3.1, whose schemas are
//! JSON Schema 2020-12, so those of the code stand in it as they are.

use carillon_domain::api::{OPERATIONS, OperationRow};
use serde_json::{Map, Value, json};

use super::asyncapi::relocate;
use crate::http::problem::Problem;

/// The document as it is served and checked in.
pub fn text() -> String {
    format!("{:#}\n", document())
}

fn document() -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for row in OPERATIONS.iter().copied().flatten() {
        let operation = operation(row, &mut schemas);
        let path = paths.entry(row.path).or_insert_with(|| json!({}));
        path[row.method.as_str().to_lowercase()] = operation;
    }
    let problem = hoist(schemars::schema_for!(Problem).to_value(), &mut schemas);
    schemas.insert("Problem".into(), problem);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Carillon server API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "For a school's backend. Every write takes an Idempotency-Key, kept for \
                24 hours: the same request under the same key is answered with the same reply, and \
                done once.",
        },
        "security": [{ "key": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key from the configuration or from `carillon apikey create`.",
                },
            },
            "responses": {
                "Problem": {
                    "description": "Not done; the code says why.",
                    "content": {
                        "application/problem+json": {
                            "schema": { "$ref": "#/components/schemas/Problem" },
                        },
                    },
                },
            },
            "schemas": schemas,
        },
    })
}

fn operation(row: &OperationRow, schemas: &mut Map<String, Value>) -> Value {
    let mut payload = hoist((row.payload)().to_value(), schemas);
    let reply = hoist((row.reply)().to_value(), schemas);
    let required: Vec<String> = payload["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    let is_required = |name: &str| required.iter().any(|one| one == name);
    let in_path: Vec<&str> = row.parameters().collect();

    let mut parameters = Vec::new();
    let mut body = Map::new();
    let properties = payload.get_mut("properties").map(Value::take).unwrap_or_default();
    for (name, schema) in properties.as_object().into_iter().flatten() {
        let place = match (in_path.contains(&name.as_str()), row.method.has_body()) {
            (true, _) => "path",
            (false, true) => {
                body.insert(name.clone(), schema.clone());
                continue;
            }
            (false, false) => "query",
        };
        parameters.push(json!({
            "name": name,
            "in": place,
            "required": place == "path" || is_required(name),
            "schema": schema,
        }));
    }
    if row.method.writes() {
        parameters.push(json!({
            "name": "Idempotency-Key",
            "in": "header",
            "required": false,
            "schema": { "type": "string", "minLength": 1, "maxLength": 200 },
        }));
    }
    let mut operation = json!({
        "operationId": row.name,
        "summary": row.summary,
        "x-scope": row.right.as_str(),
        "parameters": parameters,
        "responses": {
            row.status.to_string(): {
                "description": "Done.",
                "content": { "application/json": { "schema": reply } },
            },
            "default": { "$ref": "#/components/responses/Problem" },
        },
    });
    if let Some(about) = payload.get("description") {
        operation["description"] = about.clone();
    }
    if !body.is_empty() {
        let needed: Vec<&String> =
            required.iter().filter(|name| body.contains_key(*name)).collect();
        operation["requestBody"] = json!({
            "required": !needed.is_empty(),
            "content": { "application/json": { "schema": {
                "type": "object",
                "additionalProperties": false,
                "required": needed,
                "properties": body,
            } } },
        });
    }
    operation
}

/// Moves a schema's definitions to the document's components. A type that looks different when it
/// is sent (every key is there) than when it is received gets a name of its own.
fn hoist(mut schema: Value, schemas: &mut Map<String, Value>) -> Value {
    let mut renamed = Vec::new();
    if let Some(object) = schema.as_object_mut() {
        object.remove("$schema");
        if let Some(Value::Object(definitions)) = object.remove("$defs") {
            for (name, mut definition) in definitions {
                relocate(&mut definition);
                let mut free = name.clone();
                while schemas.get(&free).is_some_and(|other| *other != definition) {
                    free.push_str("View");
                }
                if free != name {
                    renamed.push((name, free.clone()));
                }
                schemas.insert(free, definition);
            }
        }
    }
    relocate(&mut schema);
    for (name, free) in renamed {
        rename(&mut schema, &reference(&name), &reference(&free));
        let definitions = schemas.iter_mut().filter(|(of, _)| of.ends_with("View"));
        definitions.for_each(|(_, one)| rename(one, &reference(&name), &reference(&free)));
    }
    schema
}

fn reference(name: &str) -> String {
    format!("#/components/schemas/{name}")
}

fn rename(schema: &mut Value, from: &str, to: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == "$ref" && *value == from {
                    *value = to.into();
                } else {
                    rename(value, from, to);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, from, to)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_in_the_document_and_every_reference_leads_somewhere() {
        let document = document();
        for row in OPERATIONS.iter().copied().flatten() {
            let method = row.method.as_str().to_lowercase();
            let operation = &document["paths"][row.path][method];
            assert_eq!(operation["operationId"], row.name);
            for parameter in row.parameters() {
                let of = operation["parameters"].as_array().unwrap();
                assert!(of.iter().any(|one| one["name"] == parameter && one["in"] == "path"));
            }
        }
        let text = document.to_string();
        for target in text.split("\"$ref\":\"#").skip(1) {
            let pointer = target.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
