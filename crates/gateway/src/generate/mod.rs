//! Documents and types that follow from the tables in the code: `carillon generate [--check]`.

mod asyncapi;
mod markdown;
pub mod openapi;
mod typescript;

use std::{fs, path::Path};

use anyhow::{Context as _, bail};

/// Where `generate` writes, seen from the root of the repository.
const ASYNCAPI: &str = "docs/asyncapi.json";
const OPENAPI: &str = "docs/openapi.json";
const TYPESCRIPT: &str = "examples/client/src/events.gen.ts";
const FRONTENDS: &str = "docs/FRONTENDS.md";
const OPERATIONS: &str = "docs/OPERATIONS.md";

/// Writes every generated file; with `check`, names those that would change and fails.
pub fn run(check: bool) -> anyhow::Result<()> {
    let files = [
        (ASYNCAPI, asyncapi::document()?),
        (OPENAPI, openapi::text()),
        (TYPESCRIPT, typescript::types()?),
        (FRONTENDS, section(FRONTENDS, "events", &markdown::events())?),
        (OPERATIONS, section(OPERATIONS, "configuration", &markdown::configuration()?)?),
    ];
    let mut stale = Vec::new();
    for (path, text) in files {
        if fs::read_to_string(path).is_ok_and(|old| old == text) {
            continue;
        }
        stale.push(path);
        if !check {
            let parent = Path::new(path).parent().context("a file is in a folder")?;
            fs::create_dir_all(parent)?;
            fs::write(path, text).with_context(|| format!("cannot write {path}"))?;
        }
    }
    if check && !stale.is_empty() {
        bail!("out of date, run scripts/gen: {}", stale.join(", "));
    }
    Ok(())
}

/// The file with what stands between the markers of that name replaced.
fn section(path: &str, name: &str, text: &str) -> anyhow::Result<String> {
    let (begin, end) = (format!("<!-- generated: {name} -->\n"), format!("<!-- end of {name} -->"));
    let old = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let (before, rest) =
        old.split_once(&begin).with_context(|| format!("{path} has no marker {begin:?}"))?;
    let (_, after) =
        rest.split_once(&end).with_context(|| format!("{path} has no marker {end:?}"))?;
    Ok(format!("{before}{begin}\n{text}\n{end}{after}"))
}
