//! Banned words, each with its replacement.

use super::scan::{Source, word_offsets};

/// Where a word is searched.
enum Within {
    /// Code, test code included.
    Code,
    /// Code that ships.
    ShippedCode,
    /// Comments.
    Comments,
    /// String literals of code that ships; the word is a prefix of the literal.
    ShippedStrings,
}

struct Ban {
    word: &'static str,
    within: Within,
    /// Paths (prefixes) that may.
    allowed: &'static [&'static str],
    instead: &'static str,
}

/// Where the wall clock may be read.
const CLOCKS: &[&str] =
    &["server/src/platform/clock", "agent/src/clock", "agent/build.rs", "xtask/", "loadtest/", "tests/"];

const BANS: [Ban; 16] = [
    Ban { word: "todo!", within: Within::Code, allowed: &[], instead: "build it, or leave the seam out" },
    Ban {
        word: "unimplemented!",
        within: Within::Code,
        allowed: &[],
        instead: "build it, or leave the seam out",
    },
    Ban { word: "dbg!", within: Within::Code, allowed: &[], instead: "tracing::debug! with fields" },
    Ban { word: concat!("FIX", "ME"), within: Within::Comments, allowed: &[], instead: "an issue" },
    Ban { word: concat!("TO", "DO"), within: Within::Comments, allowed: &[], instead: "an issue" },
    Ban { word: concat!("XX", "X"), within: Within::Comments, allowed: &[], instead: "an issue" },
    Ban { word: "Utc::now", within: Within::Code, allowed: &[], instead: "the Clock: ctx.clock.now_us()" },
    Ban {
        word: "SystemTime::now",
        within: Within::Code,
        allowed: CLOCKS,
        instead: "the Clock: ctx.clock.now_us()",
    },
    Ban {
        word: "thread_rng",
        within: Within::Code,
        allowed: &[],
        instead: "a seeded rng, or platform::secret",
    },
    Ban {
        word: "unbounded_channel",
        within: Within::ShippedCode,
        allowed: &[],
        instead: "a bounded channel with a named capacity",
    },
    Ban {
        word: "mpsc::channel()",
        within: Within::ShippedCode,
        allowed: &[],
        instead: "sync_channel with a named capacity",
    },
    Ban { word: "#[ignore", within: Within::Code, allowed: &[], instead: "tests/skips.txt, or a fix" },
    Ban {
        word: "process::abort",
        within: Within::ShippedCode,
        allowed: &[],
        instead: "an error that reaches main",
    },
    Ban { word: "static mut", within: Within::Code, allowed: &[], instead: "a value that is handed down" },
    Ban {
        word: "muster/",
        within: Within::ShippedStrings,
        allowed: &["shared/wire/", "xtask/src/tidy/", "tests/"],
        instead: "muster_wire::Topic",
    },
    Ban {
        word: "/up/",
        within: Within::ShippedStrings,
        allowed: &["shared/wire/", "xtask/src/tidy/", "tests/"],
        instead: "muster_wire::Topic",
    },
];

/// A banned word that was found.
pub(crate) struct Found {
    pub(crate) line: usize,
    pub(crate) word: &'static str,
    pub(crate) message: String,
}

/// Checks one Rust file.
pub(crate) fn check(path: &str, source: &Source) -> Vec<Found> {
    let mut found = Vec::new();
    for ban in &BANS {
        if ban.allowed.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        let offsets: Vec<usize> = match ban.within {
            Within::Code => source.words(ban.word).collect(),
            Within::ShippedCode => source.words(ban.word).filter(|at| !source.is_test(*at)).collect(),
            Within::Comments => word_offsets(&source.comments, ban.word).collect(),
            Within::ShippedStrings => shipped_strings(source, ban.word),
        };
        let message = format!("`{}` is banned; instead: {}", ban.word, ban.instead);
        let word = ban.word;
        found.extend(offsets.into_iter().map(|at| Found {
            line: source.line(at),
            word,
            message: message.clone(),
        }));
    }
    found
}

fn shipped_strings(source: &Source, prefix: &str) -> Vec<usize> {
    let starts = |literal: &str| literal.trim_start_matches(['b', 'r', 'c', '#', '"']).starts_with(prefix);
    let found = source.strings.iter().filter(|(at, literal)| !source.is_test(*at) && starts(literal));
    found.map(|(at, _)| *at).collect()
}

/// Texts that no file of the project holds, code or not: paths of one machine, hosts of package registries.
const FOREIGN: [(&str, &str); 9] = [
    (concat!("/ho", "me/"), "a path of one machine"),
    (concat!("/ro", "ot/"), "a path of one machine"),
    (concat!("/Use", "rs/"), "a path of one machine"),
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("crates", ".io"), "the host of a package registry"),
    (concat!("pypi", ".org"), "the host of a package registry"),
    (concat!("python", "hosted.org"), "the host of a package registry"),
    (concat!("npmjs", ".org"), "the host of a package registry"),
    (concat!("npmjs", ".com"), "the host of a package registry"),
];

/// Files that a tool writes and that name the registry by design.
const FOREIGN_ALLOWED: [&str; 1] = ["Cargo.lock"];

/// Checks any text file for texts that do not belong into a repository.
pub(crate) fn check_foreign(path: &str, text: &str) -> Vec<(usize, String)> {
    if FOREIGN_ALLOWED.contains(&path) {
        return Vec::new();
    }
    let mut problems = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (word, why) in FOREIGN {
            for (at, _) in line.match_indices(word) {
                // A path starts the word: `https://host/work/` and `a/home/b` are something else.
                let before = line[..at].chars().next_back();
                let inside =
                    before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '/' | '_' | '-' | '.' | '}'));
                if !(word.starts_with('/') && inside) {
                    problems.push((number + 1, format!("`{word}` is {why}")));
                }
            }
        }
    }
    problems
}
