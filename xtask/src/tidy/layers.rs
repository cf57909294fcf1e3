//! Who may use whom: the rank table of the server's slices, the files of a slice, and fences around crates.

use super::scan::{Source, word_offsets};

/// The server's slices by rank (docs/ARCHITECTURE.md). A slice uses lower ranks only.
const RANKS: [(&str, u8); 22] = [
    ("platform", 1),
    ("tenants", 2),
    // It asks `tenants` who calls, and writes to its audit chain.
    ("usage", 3),
    ("devices", 3),
    ("alerts", 3),
    ("models", 3),
    ("rules", 4),
    ("ota", 4),
    ("inference", 4),
    ("gateway", 5),
    ("ingest", 5),
    ("erasure", 5),
    ("notify", 5),
    ("tickets", 5),
    ("console", 5),
    ("page", 5),
    ("backup", 5),
    // The composition root stands above all and is exempt itself.
    ("app", COMPOSITION),
    ("http", COMPOSITION),
    ("main", COMPOSITION),
    ("lib", COMPOSITION),
    ("openapi", COMPOSITION),
];
const COMPOSITION: u8 = 6;

/// A crate or name that only some paths may mention in code that ships.
struct Fence {
    name: &'static str,
    inside: &'static str,
    allowed: &'static [&'static str],
    why: &'static str,
}

const FENCES: [Fence; 11] = [
    Fence {
        name: "rumqttd",
        inside: "",
        allowed: &["server/src/gateway"],
        why: "the MQTT codec is wrapped by the gateway only",
    },
    Fence {
        name: "rumqttc",
        inside: "",
        allowed: &["agent/src/uplink", "tests/"],
        why: "only the uplink speaks MQTT",
    },
    Fence {
        name: "hyper",
        inside: "agent/src",
        allowed: &["agent/src/identity", "agent/src/ota", "agent/src/blob_upload", "agent/src/metrics"],
        why: "the agent's HTTP client belongs to identity, ota and blob_upload",
    },
    Fence {
        name: "rusqlite",
        inside: "server/src",
        allowed: &["server/src/platform"],
        why: "SQL goes through platform::db",
    },
    Fence {
        name: "object_store",
        inside: "server/src",
        allowed: &["server/src/platform/blob"],
        why: "files go through platform::blob, which bounds them",
    },
    Fence {
        name: "tract_onnx",
        inside: "",
        allowed: &["shared/runtime"],
        why: "models run through muster-runtime, so that agent and server score identically",
    },
    Fence {
        name: "muster_server",
        inside: "",
        allowed: &["server/", "tests/"],
        why: "only end-to-end tests link both",
    },
    Fence {
        name: "muster_agent",
        inside: "",
        allowed: &["agent/", "tests/"],
        why: "only end-to-end tests link both",
    },
    Fence {
        name: "muster_journal",
        inside: "",
        allowed: &[
            "shared/journal",
            "agent/src",
            "agent/tests",
            "server/src/platform",
            "server/src/app",
            "server/src/ingest",
            "server/src/rules/consumer",
            "server/tests",
            "tests/",
        ],
        why: "the log is reached through the agent's queue and platform::event_log; its consumers name its types",
    },
    Fence {
        name: "tokio",
        inside: "shared",
        allowed: &["shared/runtime"],
        why: "wire and journal are free of async",
    },
    Fence {
        name: "axum",
        inside: "server/src",
        allowed: &[
            "/api.rs",
            "/api/",
            "/extract.rs",
            "/enroll.rs",
            "server/src/http",
            "server/src/app",
            "server/src/platform",
            "server/src/page",
            "server/src/console",
            "server/src/openapi",
        ],
        why: "HTTP belongs to a slice's api, its extractors and the enrolment",
    },
];

fn rank(slice: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == slice).map(|(_, rank)| *rank)
}

/// The slice that a path of the server belongs to: a folder, or a file of that name.
fn slice_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("server/src/")?;
    let first = rest.split('/').next()?;
    Some(first.strip_suffix(".rs").unwrap_or(first))
}

/// Checks one file; answers lines with what is wrong.
pub(crate) fn check(path: &str, source: &Source) -> Vec<(usize, String)> {
    let mut problems = Vec::new();
    if let Some(slice) = slice_of(path).filter(|_| !source.is_test(0)) {
        check_ranks(slice, source, &mut problems);
        check_slice_files(path, source, &mut problems);
    }
    for fence in &FENCES {
        let outside = !path.ends_with(".rs") || !path.starts_with(fence.inside);
        if outside
            || fence.allowed.iter().any(|allowed| path.starts_with(allowed) || slice_file(path, allowed))
        {
            continue;
        }
        for at in source.words(fence.name).filter(|at| !source.is_test(*at)) {
            if source.code[at + fence.name.len()..].starts_with("::") {
                problems.push((source.line(at), format!("`{}` is not for here: {}", fence.name, fence.why)));
            }
        }
    }
    problems
}

/// Allowed entries that start with a slash mean a file or folder of any slice.
fn slice_file(path: &str, allowed: &str) -> bool {
    allowed.starts_with('/') && path.contains(allowed)
}

fn check_ranks(slice: &str, source: &Source, problems: &mut Vec<(usize, String)>) {
    let Some(own) = rank(slice) else {
        problems.push((
            1,
            format!("slice `{slice}` has no rank: add it to the rank table and docs/ARCHITECTURE.md"),
        ));
        return;
    };
    if own == COMPOSITION {
        return;
    }
    for (at, used, next) in crate_paths(&source.code) {
        if source.is_test(at) || used == slice {
            continue;
        }
        let line = source.line(at);
        match rank(&used) {
            Some(other) if other >= own => problems.push((
                line,
                format!("`{slice}` (rank {own}) uses `{used}` (rank {other}): use lower ranks only; meet by id or outbox"),
            )),
            Some(other) if other > 1 && next.as_deref() == Some("store") => {
                problems.push((line, format!("`{slice}` uses `{used}::store`: call `{used}::service`")));
            }
            _ => {}
        }
    }
}

fn check_slice_files(path: &str, source: &Source, problems: &mut Vec<(usize, String)>) {
    let is = |noun: &str| path.ends_with(&format!("/{noun}.rs")) || path.contains(&format!("/{noun}/"));
    let mut refuse = |words: &[&str], why: &str| {
        for word in words {
            // A variant such as `StoreError::Db` is not the database.
            let names_it = |at: &usize| !source.is_test(*at) && !source.code[..*at].ends_with("Error::");
            for at in source.words(word).filter(names_it) {
                problems.push((source.line(at), format!("`{word}` in {why}")));
            }
        }
    };
    if path.starts_with("server/src/platform/") {
        return;
    }
    if is("api") {
        refuse(&["Db", "Tx", "db", "Scope", "TelemetryStore"], "a slice's api: call the service");
    }
    if is("store") {
        refuse(&["axum"], "a slice's store: HTTP belongs to the api");
    }
    if is("model") {
        refuse(&["axum", "tokio", "Db", "Tx"], "a slice's model: it is pure");
    }
}

/// Every `crate::name[::next]`, also within `use crate::{name, other::next}`.
fn crate_paths(code: &str) -> Vec<(usize, String, Option<String>)> {
    let mut found = Vec::new();
    for at in word_offsets(code, "crate") {
        let Some(rest) = code[at..].strip_prefix("crate::") else { continue };
        let names = match rest.strip_prefix('{') {
            None => vec![path_head(rest)],
            Some(group) => top_level_items(group).into_iter().map(path_head).collect(),
        };
        let named = names.into_iter().filter(|(name, _)| !name.is_empty());
        found.extend(named.map(|(name, next)| (at, name, next)));
    }
    found
}

/// The items of a brace group at its own level; nested groups stay inside their item.
fn top_level_items(group: &str) -> Vec<&str> {
    let mut items = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => {
                items.push(&group[start..at]);
                break;
            }
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                items.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items
}

fn path_head(path: &str) -> (String, Option<String>) {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let path = path.trim_start();
    let first = name(path);
    let next = path[first.len()..].strip_prefix("::").map(name).filter(|next| !next.is_empty());
    (first, next)
}
