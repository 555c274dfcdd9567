//! Makes `bundle.json` of a folder of lexicon documents.
//!
//! The documents are looked for in `../shared/lexicons` beside the workspace, or in the folder that
//! `ATPROTO_LEXICON_DIR` names. To renew the bundle, run this test with newer documents: it fails, writes what the bundle
//! should be to the temporary folder, and says where; that file is to be copied over `bundle.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::repo::Nsid;
use serde_json::{Map, Value as Json};

use super::schema::{Lexicons, Written, absolute};

/// Definitions that stand for a document as a whole.
const PRIMARY: [&str; 5] = ["record", "query", "procedure", "subscription", "permission-set"];

/// The definitions of a document by their whole names, those of methods and permissions left out.
///
/// # Errors
/// What makes it no lexicon document.
pub(super) fn definitions(document: &Json) -> Result<BTreeMap<String, Json>, String> {
    if document["lexicon"] != 1 {
        return Err("not of version 1".to_owned());
    }
    let id = document["id"].as_str().ok_or("no id")?;
    Nsid::check(id).map_err(|error| error.to_string())?;
    let mut found = BTreeMap::new();
    for (name, definition) in document["defs"].as_object().ok_or("no definitions")? {
        let kind = definition["type"].as_str().ok_or("a definition without a type")?;
        let is_primary = PRIMARY.contains(&kind);
        if is_primary && name != "main" {
            return Err(format!("{name} is a {kind} and not main"));
        }
        if !is_primary || kind == "record" {
            found.insert(absolute(&format!("{id}#{name}"), id), definition.clone());
        }
    }
    Ok(found)
}

/// The lexicons that these definitions are.
///
/// # Errors
/// What is wrong with them.
pub(super) fn compile(definitions: &BTreeMap<String, Json>) -> Result<Lexicons, String> {
    let written = definitions.iter().map(|(name, definition)| {
        let written = serde_json::from_value::<Written>(definition.clone());
        Ok((name.clone(), written.map_err(|error| format!("{name}: {error}"))?))
    });
    Lexicons::compile(&written.collect::<Result<_, String>>()?).map_err(|error| error.to_string())
}

/// A definition with what validation needs, names whole, and the names that it references.
fn essence(definition: &Json, name: &str, references: &mut Vec<String>) -> Json {
    let mut essential = Map::new();
    for (key, value) in definition.as_object().unwrap() {
        let mut whole = |reference: &Json| {
            let target = absolute(reference.as_str().unwrap(), name);
            references.push(target.clone());
            Json::from(target)
        };
        let value = match key.as_str() {
            "description" | "knownValues" | "default" => continue,
            "ref" => whole(value),
            "refs" => value.as_array().unwrap().iter().map(whole).collect(),
            "properties" => {
                let fields = value.as_object().unwrap().iter();
                let fields = fields.map(|(field, of)| (field.clone(), essence(of, name, references)));
                Json::Object(fields.collect())
            }
            "items" | "record" => essence(value, name, references),
            _ => value.clone(),
        };
        essential.insert(key.clone(), value);
    }
    Json::Object(essential)
}

/// Every record of the documents, and all that they reference; one definition a line, in order of their names.
fn bundle(definitions: &BTreeMap<String, Json>) -> String {
    let is_record = |(_, definition): &(&String, &Json)| definition["type"] == "record";
    let mut wanted: Vec<String> = definitions
        .iter()
        .filter(is_record)
        .map(|it| it.0.clone())
        .collect();
    let mut lines = BTreeMap::new();
    while let Some(name) = wanted.pop() {
        if !lines.contains_key(&name) {
            let definition = definitions
                .get(&name)
                .unwrap_or_else(|| panic!("{name} is missing"));
            let essential = essence(definition, &name, &mut wanted);
            lines.insert(name.clone(), format!("{}:{essential}", Json::from(name)));
        }
    }
    let lines: Vec<String> = lines.into_values().collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

fn read_folder(folder: &Path, found: &mut BTreeMap<String, Json>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_folder(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "json") {
            let document = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let definitions = definitions(&document);
            found.extend(definitions.unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        }
    }
}

#[test]
fn the_bundle_is_what_the_documents_say() {
    let folder = std::env::var_os("ATPROTO_LEXICON_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/lexicons"),
        PathBuf::from,
    );
    if !folder.is_dir() {
        eprintln!(
            "skipped: no lexicon documents in {} (set ATPROTO_LEXICON_DIR)",
            folder.display()
        );
        return;
    }
    let mut found = BTreeMap::new();
    read_folder(&folder, &mut found);
    let bundle = bundle(&found);
    if bundle != super::BUNDLE {
        let path = std::env::temp_dir().join("lexicon-bundle.json");
        std::fs::write(&path, bundle).unwrap();
        panic!(
            "the bundle is not of these documents; what it should be is in {}",
            path.display()
        );
    }
}
