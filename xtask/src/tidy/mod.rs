//! `xtask tidy`: what the compiler does not check. CI runs it.
//!
//! Checks the rank table and the fences of docs/ARCHITECTURE.md, lengths of files and functions, module docs,
//! banned words, the list of `Scope::System` reasons, dependencies listed once, texts of one machine, big files and
//! stray ones. Exceptions stand in `xtask/tidy.toml`; one that is no longer needed is a problem too, so the list shrinks.

mod layers;
mod scan;
mod words;

#[cfg(test)]
mod tests;

use anyhow::{Context, Result};
use scan::Source;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The longest file, in lines.
const FILE_LINES_MAX: usize = 500;
/// The longest function, in lines.
const FUNCTION_LINES_MAX: usize = 70;
/// The largest file in the repository, in bytes.
const FILE_BYTES_MAX: u64 = 1_000_000;
/// Kinds of files that may be no text.
const BINARY_KINDS: [&str; 2] = [".onnx", ".png"];
/// Directories that are no part of the repository.
const SKIPPED_DIRS: [&str; 7] =
    ["target", ".git", ".venv", ".data", "node_modules", "__pycache__", ".issues"];

/// Command line of `xtask tidy`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Print the exceptions that the tree would need now, in the form of xtask/tidy.toml.
    #[arg(long)]
    propose: bool,
}

/// What may break a rule, and by how much.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Exceptions {
    /// Path to its allowed lines.
    #[serde(default)]
    file_lines: BTreeMap<String, usize>,
    /// `path::function` to its allowed lines.
    #[serde(default)]
    function_lines: BTreeMap<String, usize>,
    /// Path to the banned words that it may hold.
    #[serde(default)]
    words: BTreeMap<String, BTreeSet<String>>,
    /// Reasons why a store function may cross tenants.
    #[serde(default)]
    scope_system: ScopeSystem,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ScopeSystem {
    reasons: BTreeSet<String>,
}

/// One file of the repository, by its path from the root; no text where it is not UTF-8.
struct File {
    path: String,
    bytes: u64,
    text: Option<String>,
}

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Problem {
    path: String,
    line: usize,
    message: String,
}

/// What was measured, for the exceptions.
#[derive(Default)]
struct Measured {
    file_lines: BTreeMap<String, usize>,
    function_lines: BTreeMap<String, usize>,
    words: BTreeMap<String, BTreeSet<String>>,
    scope_reasons: BTreeSet<String>,
}

/// Runs every check on the workspace; answers whether it is tidy.
///
/// # Errors
/// A file of the workspace, or the exceptions, cannot be read.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let root = crate::cargo::root();
    let files = collect(&root)?;
    let text =
        std::fs::read_to_string(root.join("xtask/tidy.toml")).context("cannot read xtask/tidy.toml")?;
    let exceptions: Exceptions = toml::from_str(&text).context("xtask/tidy.toml is not valid")?;
    let (problems, measured) = check(&files, &exceptions);
    if arguments.propose {
        print!("{}", propose(&measured));
        return Ok(true);
    }
    for Problem { path, line, message } in &problems {
        println!("{path}:{line}: {message}");
    }
    println!("tidy: {} files, {} problems", files.len(), problems.len());
    Ok(problems.is_empty())
}

/// Runs every check on the files.
fn check(files: &[File], exceptions: &Exceptions) -> (Vec<Problem>, Measured) {
    let mut problems = Vec::new();
    let mut measured = Measured::default();
    let test_files = test_files(files);
    for file in files {
        let mut add = |found: Vec<(usize, String)>| {
            problems.extend(found.into_iter().map(|(line, message)| Problem {
                path: file.path.clone(),
                line,
                message,
            }));
        };
        if file.bytes > FILE_BYTES_MAX {
            add(vec![(0, format!("{} bytes: no file is larger than {FILE_BYTES_MAX}", file.bytes))]);
        }
        let Some(text) = &file.text else {
            if !BINARY_KINDS.iter().any(|kind| file.path.ends_with(kind)) {
                let kinds = BINARY_KINDS.join(", ");
                add(vec![(0, format!("no text, and none of {kinds}: did it get here by accident?"))]);
            }
            continue;
        };
        add(words::check_foreign(&file.path, text));
        if file.path.ends_with("Cargo.toml") && file.path != "Cargo.toml" {
            add(check_dependencies(text));
        }
        if file.path.ends_with(".rs") {
            let is_test = is_test_path(&file.path) || test_files.contains(file.path.as_str());
            let source = Source::scan(text, is_test);
            add(layers::check(&file.path, &source));
            add(check_words(&file.path, &source, exceptions, &mut measured));
            add(check_shape(&file.path, text, &source, is_test, exceptions, &mut measured));
            add(check_scopes(&source, exceptions, &mut measured));
        }
    }
    problems.extend(check_exceptions(exceptions, &measured));
    problems.sort();
    problems.dedup();
    (problems, measured)
}

/// Paths that hold test code only.
fn is_test_path(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.contains("tests/") || path.starts_with("tests/") || name == "tests.rs" || name.ends_with("_tests.rs")
}

/// Files whose parent declares them as `#[cfg(test)] mod name;`.
fn test_files(files: &[File]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        let Some(text) = &file.text else { continue };
        let Some((dir, name)) = file.path.rsplit_once('/') else { continue };
        let children = match name {
            "mod.rs" | "lib.rs" | "main.rs" => dir.to_owned(),
            _ => format!("{dir}/{}", name.trim_end_matches(".rs")),
        };
        for module in Source::scan(text, false).test_modules() {
            found.insert(format!("{children}/{module}.rs"));
            let folder = format!("{children}/{module}/");
            found.extend(
                files.iter().filter(|file| file.path.starts_with(&folder)).map(|file| file.path.clone()),
            );
        }
    }
    found
}

/// Module doc, and lengths of the file and of its functions.
fn check_shape(
    path: &str,
    text: &str,
    source: &Source,
    is_test: bool,
    exceptions: &Exceptions,
    measured: &mut Measured,
) -> Vec<(usize, String)> {
    let mut problems = Vec::new();
    if !is_test && !text.trim_start().starts_with("//!") {
        problems.push((1, "no module doc: who calls me, what I promise, my limits (`//!`)".to_owned()));
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        measured.file_lines.insert(path.to_owned(), lines);
        let allowed = exceptions.file_lines.get(path).copied().unwrap_or(FILE_LINES_MAX);
        if lines > allowed {
            problems.push((1, format!("{lines} lines, at most {allowed}: split it by noun")));
        }
    }
    for function in source.functions() {
        if function.lines <= FUNCTION_LINES_MAX {
            continue;
        }
        let name = format!("{path}::{}", function.name);
        let allowed = exceptions.function_lines.get(&name).copied().unwrap_or(FUNCTION_LINES_MAX);
        if function.lines > allowed {
            let message = format!("fn {} has {} lines, at most {allowed}", function.name, function.lines);
            problems.push((function.line, message));
        }
        measured.function_lines.insert(name, function.lines);
    }
    problems
}

/// Banned words, but for the exceptions.
fn check_words(
    path: &str,
    source: &Source,
    exceptions: &Exceptions,
    measured: &mut Measured,
) -> Vec<(usize, String)> {
    let mut problems = Vec::new();
    for found in words::check(path, source) {
        if !exceptions.words.get(path).is_some_and(|words| words.contains(found.word)) {
            problems.push((found.line, found.message));
        }
        measured.words.entry(path.to_owned()).or_default().insert(found.word.to_owned());
    }
    problems
}

/// Every reason of `Scope::System("reason")` must stand in the exceptions.
fn check_scopes(source: &Source, exceptions: &Exceptions, measured: &mut Measured) -> Vec<(usize, String)> {
    const CALL: &str = "Scope::System(";
    let mut problems = Vec::new();
    for (at, _) in source.code.match_indices(CALL).filter(|(at, _)| !source.is_test(*at)) {
        let argument = at + CALL.len();
        let rest = source.code[argument..].trim_start();
        if rest.starts_with('_') || rest.starts_with("..") || rest.starts_with(char::is_lowercase) {
            continue; // a pattern
        }
        let literal_at = argument + (source.code[argument..].len() - rest.len());
        let Some((_, literal)) = source.strings.iter().find(|(start, _)| *start == literal_at) else {
            problems.push((source.line(at), "write the reason of Scope::System as a literal".to_owned()));
            continue;
        };
        let reason = literal.trim_matches('"').to_owned();
        if !exceptions.scope_system.reasons.contains(&reason) {
            let message = format!(
                "Scope::System({literal}) is not listed in xtask/tidy.toml: use Scope::Tenant, or argue"
            );
            problems.push((source.line(at), message));
        }
        measured.scope_reasons.insert(reason);
    }
    problems
}

/// From the workspace's list, or the crate itself with more features for its tests.
fn listed(line: &str) -> bool {
    line.contains("workspace = true") || line.contains("path = \".\"")
}

/// Members take every dependency from the workspace's list.
fn check_dependencies(text: &str) -> Vec<(usize, String)> {
    let mut problems = Vec::new();
    let mut within = false;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            within = line.ends_with("dependencies]");
        } else if within && !line.is_empty() && !line.starts_with('#') && !listed(line) {
            problems.push((number + 1, format!("list it in [workspace.dependencies]: {line}")));
        }
    }
    problems
}

/// An exception that is not needed, or allows more than a tenth above the need, is a problem.
fn check_exceptions(exceptions: &Exceptions, measured: &Measured) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |message| problems.push(Problem { path: "xtask/tidy.toml".to_owned(), line: 1, message });
    let both = [
        (&exceptions.file_lines, &measured.file_lines),
        (&exceptions.function_lines, &measured.function_lines),
    ];
    for (allowed, actual) in both {
        for (name, allowed) in allowed {
            match actual.get(name) {
                None => add(format!("{name} needs no exception any more: remove it")),
                Some(lines) if lines + lines / 10 < *allowed => {
                    add(format!("{name} has {lines} lines: lower it"))
                }
                Some(_) => {}
            }
        }
    }
    let none = BTreeSet::new();
    for (path, allowed) in &exceptions.words {
        for word in allowed.difference(measured.words.get(path).unwrap_or(&none)) {
            add(format!("{path} holds no `{word}` any more: remove it"));
        }
    }
    for reason in exceptions.scope_system.reasons.difference(&measured.scope_reasons) {
        add(format!("no code gives the reason {reason:?} any more: remove it"));
    }
    problems
}

/// The exceptions that the tree would need, as TOML.
fn propose(measured: &Measured) -> String {
    let table = |name: &str, lines: &BTreeMap<String, usize>| {
        let rows: String = lines.iter().map(|(name, lines)| format!("{name:?} = {lines}\n")).collect();
        format!("[{name}]\n{rows}\n")
    };
    let reasons: String = measured.scope_reasons.iter().map(|reason| format!("  {reason:?},\n")).collect();
    let files = table("file_lines", &measured.file_lines);
    let functions = table("function_lines", &measured.function_lines);
    let words: String =
        measured.words.iter().map(|(path, words)| format!("{path:?} = {words:?}\n")).collect();
    let words = words.replace('{', "[").replace('}', "]");
    format!("{files}{functions}[words]\n{words}\n[scope_system]\nreasons = [\n{reasons}]\n")
}

/// Reads every file of the repository.
fn collect(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let name = entry.file_name();
            if kind.is_dir() {
                if !SKIPPED_DIRS.iter().any(|skipped| name == *skipped) {
                    dirs.push(entry.path());
                }
            } else if kind.is_file() && name != ".git" {
                let bytes = entry.metadata()?.len();
                let within = entry.path().strip_prefix(root).context("outside the root")?.to_owned();
                let path = within.to_string_lossy().replace('\\', "/");
                let text =
                    (bytes <= FILE_BYTES_MAX).then(|| std::fs::read_to_string(entry.path()).ok()).flatten();
                files.push(File { path, bytes, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}
