//! The map of what the tests pin (`tests/COVERAGE.md`) is complete and true: all statements and all methods have a row, and the
//! tests that it names exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::super::METHODS;
use crate::testkit::files;

/// Statements about the reference that the map has to list.
const STATEMENTS: usize = 100;
/// The crates that the map names, and where their tests are.
const CRATES: [(&str, &str); 3] = [
    ("server", "server/src"),
    ("engine", "engine/src"),
    ("tests", "tests/tests/all"),
];
/// How the cell of a row begins that has no test, before the reason.
const NONE: &str = "none: ";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn map() -> String {
    std::fs::read_to_string(root().join("tests/COVERAGE.md")).unwrap()
}

/// The cells of every row of the tables that have so many columns, without their heads.
fn rows(map: &str, heads: &[&str]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut wanted = false;
    for line in map.lines() {
        let Some(inner) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            wanted = false;
            continue;
        };
        let cells: Vec<String> = inner.split('|').map(|cell| cell.trim().to_owned()).collect();
        if cells == heads {
            wanted = true;
        } else if wanted && !cells.iter().all(|cell| cell.starts_with("---")) {
            assert_eq!(cells.len(), heads.len(), "{line}");
            found.push(cells);
        }
    }
    found
}

/// What stands between backticks.
fn spans(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The tests of a cell: crate and path.
fn named(cell: &str) -> Vec<(&str, String)> {
    let (mut found, mut of, mut module, mut fresh) = (Vec::new(), "", String::new(), false);
    for span in spans(cell) {
        if CRATES.iter().any(|(name, _)| *name == span) {
            (of, fresh) = (span, true);
            continue;
        }
        if !fresh && !span.contains("::") {
            continue;
        }
        fresh = false;
        let path = match span.strip_prefix("…::") {
            Some(name) => format!("{module}::{name}"),
            None => span.to_owned(),
        };
        module = path.rsplit_once("::").map_or("", |(module, _)| module).to_owned();
        found.push((of, path));
    }
    found
}

/// The paths of all tests below a folder of sources.
fn tests_below(folder: &Path) -> BTreeSet<String> {
    let sources: Vec<(PathBuf, String)> = files(folder)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ext| ext == "rs"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path, text)
        })
        .collect();
    let mut found = BTreeSet::new();
    for (path, text) in &sources {
        let module = stands_in(path, &sources, folder).unwrap_or_else(|| module_of(path, folder));
        for test in tests_in(text) {
            let parts = [module.as_str(), test.as_str()];
            let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            found.insert(parts.join("::"));
        }
    }
    found
}

fn module_of(path: &Path, folder: &Path) -> String {
    let relative = path.strip_prefix(folder).unwrap().with_extension("");
    let parts = relative.iter().map(|part| part.to_str().unwrap());
    let parts: Vec<&str> = parts
        .filter(|part| !matches!(*part, "mod" | "lib" | "main"))
        .collect();
    parts.join("::")
}

/// The module of a file that another one names by `#[path]`.
fn stands_in(path: &Path, sources: &[(PathBuf, String)], folder: &Path) -> Option<String> {
    let attribute = format!("#[path = \"{}\"]", path.file_name()?.to_str()?);
    let mut beside = sources
        .iter()
        .filter(|(other, _)| other.parent() == path.parent());
    beside.find_map(|(other, text)| {
        let (_, after) = text.split_once(&attribute)?;
        let name = after.trim_start().strip_prefix("mod ")?.split(';').next()?;
        Some(format!("{}::{name}", module_of(other, folder)))
    })
}

/// The tests of one file, below its own modules.
fn tests_in(text: &str) -> Vec<String> {
    let (mut found, mut modules, mut marked) = (Vec::new(), Vec::<(usize, &str)>::new(), false);
    for line in text.lines() {
        let (code, indent) = (line.trim(), line.len() - line.trim_start().len());
        if code == "}" && modules.last().is_some_and(|(at, _)| *at == indent) {
            modules.pop();
        }
        let module = code.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {"));
        modules.extend(module.map(|name| (indent, name)));
        marked |= code.starts_with("#[") && (code.contains("test]") || code.contains("::test("));
        let name = code.strip_prefix("async ").unwrap_or(code).strip_prefix("fn ");
        if let Some(name) = name.and_then(|rest| rest.split(['(', '<']).next())
            && std::mem::take(&mut marked)
        {
            let path = modules.iter().map(|(_, module)| *module).chain([name]);
            found.push(path.collect::<Vec<_>>().join("::"));
        }
    }
    found
}

#[test]
fn every_statement_has_a_row_and_every_row_a_test_or_a_reason() {
    let map = map();
    let statements = rows(&map, &["no.", "statement", "test"]);
    let numbers: Vec<usize> = statements.iter().map(|row| row[0].parse().unwrap()).collect();
    assert_eq!(numbers, (1..=STATEMENTS).collect::<Vec<_>>());
    let others = [
        rows(&map, &["statement", "test"]),
        rows(&map, &["method", "test"]),
    ];
    assert!(others.iter().all(|rows| !rows.is_empty()));
    for row in statements.iter().chain(others.iter().flatten()) {
        let cell = row.last().unwrap();
        let reason = cell.strip_prefix(NONE).is_some_and(|reason| !reason.is_empty());
        assert!(
            reason || !named(cell).is_empty(),
            "neither test nor reason: {row:?}"
        );
    }
}

#[test]
fn every_method_that_is_served_has_a_row() {
    let mut listed = BTreeSet::new();
    for row in rows(&map(), &["method", "test"]) {
        let mut group = "";
        for span in spans(&row[0]) {
            // A name alone belongs to the group of the one before.
            match span.rsplit_once('.') {
                Some((of, _)) => {
                    group = of;
                    listed.insert(span.to_owned());
                }
                None => {
                    listed.insert(format!("{group}.{span}"));
                }
            }
        }
    }
    let served = METHODS.iter().map(|row| row.nsid());
    let missing: Vec<&str> = served
        .chain(["com.atproto.sync.subscribeRepos"])
        .filter(|nsid| !listed.contains(*nsid))
        .collect();
    assert!(missing.is_empty(), "without a row: {missing:?}");
}

#[test]
fn every_test_that_the_map_names_exists() {
    let known = CRATES.map(|(name, folder)| (name, tests_below(&root().join(folder))));
    let mut missing = Vec::new();
    let map = map();
    let cells = map.lines().filter_map(|line| {
        let inner = line.strip_prefix('|')?.strip_suffix('|')?;
        inner.rsplit('|').next()
    });
    for (of, path) in cells.flat_map(named) {
        let tests = known.iter().find(|(name, _)| *name == of).map(|(_, tests)| tests);
        let exists = tests.is_some_and(|tests| match path.strip_suffix('…') {
            Some(begin) => tests.iter().any(|test| test.starts_with(begin)),
            None => tests
                .iter()
                .any(|test| *test == path || test.starts_with(&format!("{path}::"))),
        });
        if !exists {
            missing.push(format!("{of} {path}"));
        }
    }
    assert!(missing.is_empty(), "not there: {missing:#?}");
}

#[test]
fn tests_are_found_in_sources_as_they_are_written() {
    let text = "#[cfg(test)]\nmod tests {\n    #[tokio::test(flavor = \"x\")]\n    async fn one() {\n    }\n    fn no() {}\n    #[test]\n    #[ignore]\n    fn two() {\n    }\n}\n#[test]\nfn three() {\n}\n";
    assert_eq!(tests_in(text), ["tests::one", "tests::two", "three"]);
    let cell = "`server` `a::b`, `…::c_…` (`x` of `Y`); `tests` `limits`";
    let expected = [("server", "a::b"), ("server", "a::c_…"), ("tests", "limits")];
    assert_eq!(named(cell), expected.map(|(of, path)| (of, path.to_owned())));
}
