//! Records of every type that this server knows, right and wrong ones (`tests/records`), and what two servers say of each: this one,
//! and the reference beside it. Where they differ is listed, with the reason; the list has to be exact.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use tests::api::{Account, Api};
use tests::reference::{self, Reference};
use tests::stack::{Pds, ReplicaKind, Stack};
use tests::{Outcome, root, skip};

const CREATE: &str = "com.atproto.repo.createRecord";
/// What is said of a record when `validate` is unset and when it is true.
type Verdicts = [String; 2];

/// A record to be written.
#[derive(Clone, Debug)]
struct Case {
    collection: String,
    /// What is wrong with it; empty if nothing is.
    fault: String,
    rkey: Option<String>,
    record: Value,
}

/// The files of the corpus by their collections.
fn corpus() -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root().join("tests/records"))? {
        let path = entry?.path();
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.extension().is_some_and(|ending| ending == "json") && name.contains('.') {
            let text = std::fs::read_to_string(&path)?;
            let file = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
            found.insert(name, file);
        }
    }
    Ok(found)
}

/// The cases of a file: the valid record first.
fn cases(collection: &str, file: &Value) -> Result<Vec<Case>> {
    let valid = Case {
        collection: collection.to_owned(),
        fault: String::new(),
        rkey: file["rkey"].as_str().map(str::to_owned),
        record: file["valid"].clone(),
    };
    let mut cases = vec![valid.clone()];
    for (fault, edits) in file["faults"].as_object().context("no faults")? {
        let mut case = valid.clone();
        case.fault.clone_from(fault);
        for (place, value) in edits.as_object().context("no edits")? {
            if place == "@rkey" {
                case.rkey = value.as_str().map(str::to_owned);
            } else {
                edit(&mut case.record, place, value)
                    .with_context(|| format!("{collection}, {fault}: {place}"))?;
            }
        }
        ensure!(
            case.record != valid.record || case.rkey != valid.rkey,
            "{collection}, {fault}: changes nothing"
        );
        cases.push(case);
    }
    Ok(cases)
}

/// Puts a value where a JSON pointer leads, or takes away what is there.
fn edit(record: &mut Value, pointer: &str, value: &Value) -> Result<()> {
    let (parent, name) = pointer.rsplit_once('/').context("no pointer")?;
    let parent = record.pointer_mut(parent).context("nothing there")?;
    let value = spelt_out(value)?;
    match (parent, value) {
        (Value::Object(parent), None) => {
            parent.remove(name).context("nothing to take away")?;
        }
        (Value::Object(parent), Some(value)) => {
            parent.insert(name.to_owned(), value);
        }
        (Value::Array(parent), Some(value)) => {
            *parent.get_mut(name.parse::<usize>()?).context("no such item")? = value;
        }
        (other, _) => bail!("{other} has no {name}"),
    }
    Ok(())
}

/// What an edit stands for: `{"$times": [3, "x"]}` for "xxx", `{"$list": [2, x]}` for [x, x], `{"$remove": true}` for nothing.
fn spelt_out(value: &Value) -> Result<Option<Value>> {
    let count =
        |list: &Value| -> Result<usize> { Ok(usize::try_from(list[0].as_u64().context("no number")?)?) };
    if value.get("$remove").is_some() {
        return Ok(None);
    }
    if let Some(times) = value.get("$times") {
        let text = times[1].as_str().context("no text")?;
        return Ok(Some(text.repeat(count(times)?).into()));
    }
    if let Some(list) = value.get("$list") {
        return Ok(Some(vec![list[1].clone(); count(list)?].into()));
    }
    Ok(Some(value.clone()))
}

/// A server with an account that has uploaded the blobs of the corpus.
struct Judge<'a> {
    api: &'a Api,
    account: Account,
    blobs: Map<String, Value>,
}

impl<'a> Judge<'a> {
    async fn new(api: &'a Api) -> Result<Judge<'a>> {
        let account = api.create_account("judge").await?;
        let mut blobs = Map::new();
        // The smallest that are taken for what they are.
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0\x1f\x15\xc4\x89";
        let mp4 = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom";
        for (name, mime, bytes) in [
            ("@png", "image/png", png.to_vec()),
            ("@mp4", "video/mp4", mp4.to_vec()),
            ("@vtt", "text/vtt", b"WEBVTT\n".to_vec()),
        ] {
            let blob = api.upload(&account, mime, bytes).await?;
            ensure!(blob["mimeType"] == mime, "{blob}");
            blobs.insert(name.to_owned(), blob);
        }
        // A blob goes with the last record that names it.
        let names: Vec<&Value> = blobs.values().collect();
        api.create(&account, "com.example.keeper", json!({ "blobs": names }))
            .await?;
        Ok(Judge { api, account, blobs })
    }

    /// With the blobs in their places.
    fn fill(&self, value: &mut Value) {
        match value {
            Value::String(name) => {
                if let Some(blob) = self.blobs.get(name) {
                    *value = blob.clone();
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.fill(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.fill(field)),
            _ => {}
        }
    }

    async fn judge(&self, file: &Value, collection: &str) -> Result<Vec<(Case, Verdicts)>> {
        let mut file = file.clone();
        self.fill(&mut file);
        let mut judged = Vec::new();
        for case in cases(collection, &file)? {
            let verdicts = [
                self.verdict(&case, None).await?,
                self.verdict(&case, Some(true)).await?,
            ];
            judged.push((case, verdicts));
        }
        Ok(judged)
    }

    /// `valid` or `unknown` for what is taken, else the status and the name of the error.
    async fn verdict(&self, case: &Case, validate: Option<bool>) -> Result<String> {
        let repo = &self.account.did;
        let mut input = json!({ "repo": repo, "collection": case.collection, "record": case.record });
        if let Some(rkey) = &case.rkey {
            input["rkey"] = json!(rkey);
        }
        if let Some(validate) = validate {
            input["validate"] = json!(validate);
        }
        let token = Some(self.account.access.as_str());
        let answer = self.api.procedure(CREATE, &input, token).await?;
        let body = answer.json()?;
        if answer.status != 200 {
            return Ok(format!(
                "{} {}",
                answer.status,
                body["error"].as_str().unwrap_or("-")
            ));
        }
        let uri = body["uri"].as_str().unwrap_or_default();
        let rkey = uri.rsplit('/').next().unwrap_or_default();
        let input = json!({ "repo": repo, "collection": case.collection, "rkey": rkey });
        let removed = self
            .api
            .procedure("com.atproto.repo.deleteRecord", &input, token)
            .await?;
        ensure!(removed.status == 200, "{uri} stays: {}", removed.text());
        Ok(body["validationStatus"].as_str().unwrap_or("-").to_owned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_every_known_type_are_judged_as_by_the_reference() -> Outcome {
    let Some(stack) = Stack::start(ReplicaKind::None).await? else {
        return skip("the stack does not start");
    };
    let known = std::fs::read_to_string(root().join("server/src/lexicon/bundle.json"))?;
    let known: Value = serde_json::from_str(&known)?;
    let records = known.as_object().context("no bundle")?.iter();
    let records: Vec<&str> = records
        .filter(|(_, definition)| definition["type"] == "record")
        .map(|(name, _)| name.as_str())
        .collect();
    let corpus = corpus()?;
    ensure!(
        corpus.keys().map(String::as_str).collect::<Vec<_>>() == records,
        "the corpus has other types than the server: {:?} and {records:?}",
        corpus.keys()
    );

    let pds = Pds::start(&stack.settings(&stack.place("data"))).await?;
    let ours = Judge::new(&pds.api).await?;
    let mut of_ours = Vec::new();
    for (collection, file) in &corpus {
        let judged = ours.judge(file, collection).await?;
        ensure!(judged.len() > 10, "{collection} has too few faults");
        of_ours.extend(judged);
    }
    for (case, verdicts) in of_ours.iter().filter(|(case, _)| case.fault.is_empty()) {
        ensure!(
            verdicts.iter().all(|verdict| verdict == "valid"),
            "{case:?}: {verdicts:?}"
        );
    }

    let Some(reference) = Reference::start(&stack, "reference", None).await? else {
        pds.stop().await?;
        return skip(reference::MISSING);
    };
    let theirs = Judge::new(&reference.api).await?;
    let mut of_theirs = Vec::new();
    for (collection, file) in &corpus {
        of_theirs.extend(theirs.judge(file, collection).await?);
    }
    let listed = std::fs::read_to_string(root().join("tests/records/differences.json"))?;
    let mut listed: Vec<Value> = serde_json::from_str(&listed)?;
    for difference in &mut listed {
        let why = difference.as_object_mut().and_then(|fields| fields.remove("why"));
        ensure!(
            why.as_ref()
                .and_then(Value::as_str)
                .is_some_and(|why| !why.is_empty()),
            "no reason: {difference}"
        );
    }
    let found: Vec<Value> = of_ours
        .iter()
        .zip(&of_theirs)
        .filter(|((case, ours), (_, theirs))| {
            // A fault that both take is none, and does not belong here.
            ours != theirs || (!case.fault.is_empty() && ours.iter().any(|verdict| verdict == "valid"))
        })
        .map(|((case, ours), (_, theirs))| {
            json!({ "record": case.collection, "fault": case.fault, "ours": ours, "reference": theirs })
        })
        .collect();
    let unlisted: Vec<&Value> = found.iter().filter(|one| !listed.contains(one)).collect();
    let gone: Vec<&Value> = listed.iter().filter(|one| !found.contains(one)).collect();
    ensure!(
        unlisted.is_empty() && gone.is_empty(),
        "differences that are not listed:\n{}\nthat are listed and not found:\n{}",
        lines(&unlisted),
        lines(&gone)
    );
    println!("{} records judged, {} differently", of_ours.len(), found.len());
    pds.stop().await?;
    stack.stop().await
}

fn lines(values: &[&Value]) -> String {
    values.iter().map(|value| format!("  {value},\n")).collect()
}
