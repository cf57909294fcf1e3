//! The page's parts beside the plots.

use super::{ROWS_MAX, escape};
use crate::report::figures::{self, Figure};
use crate::report::model::{Invariant, Latency, Report};
use crate::report::setups;
use crate::report::svg::Mark;
use crate::report::units::{self, Unit, count, counted, duration, moment, number, utc};
use std::collections::BTreeMap;
use std::fmt::Write;

pub(super) fn header(report: &Report) -> String {
    let setup = &report.setup;
    let (devices, tenants) =
        (counted(setup.devices.into(), "device"), counted(setup.tenants.into(), "tenant"));
    let (rate, seconds) = (number(setup.rate), duration(setup.seconds));
    let version = match setup.mqtt {
        4 => "3.1.1".to_owned(),
        other => other.to_string(),
    };
    let load = report.cost.other_load_cores;
    let word = if setups::quiet(load) { "quiet" } else { "busy" };
    format!(
        "<header>\n<h1>Load run: {profile}</h1>\n<p class=\"lead\">{devices} of {tenants}, {rate} \
         messages a second, {seconds}; {transport}, MQTT {version}, against {target}</p>\n\
         <dl class=\"facts\"><div><dt>Began</dt><dd>{began}</dd></div><div><dt>Machine</dt><dd>{machine}</dd></div>\
         <div><dt>Other load</dt><dd>{load} ({word})</dd></div>\
         <div><dt>Seed</dt><dd>{seed}</dd></div></dl>\n</header>\n",
        profile = escape(&setup.profile),
        transport = escape(&setup.transport),
        target = escape(&setup.target),
        began = utc(setup.began_at_us),
        machine = escape(&setup.machine),
        load = Unit::Cores.show(load),
        seed = setup.seed,
    )
}

pub(super) fn verdict(report: &Report) -> String {
    let all = report.invariants.len();
    let broken = report.invariants.iter().filter(|invariant| !invariant.held).count();
    let (class, sentence) = match (all, broken) {
        (0, _) => ("none", "No invariant was checked.".to_owned()),
        (1, 0) => ("held", "The one invariant held.".to_owned()),
        (all, 0) => ("held", format!("All {all} invariants held.")),
        (all, broken) => ("broke", format!("{broken} of {all} invariants broke.")),
    };
    let mut rows = String::new();
    // Broken ones first: they are what the reader came for.
    let sorted = |held: bool| report.invariants.iter().filter(move |invariant| invariant.held == held);
    for Invariant { name, held, detail } in sorted(false).chain(sorted(true)).take(ROWS_MAX) {
        let (class, word) = if *held { ("held", "held") } else { ("broke", "broke") };
        let (name, detail) = (escape(name), escape(detail));
        let _ = writeln!(
            rows,
            "<li class=\"{class}\"><b>{word}</b> <code>{name}</code> <span>{detail}</span></li>"
        );
    }
    format!("<section class=\"verdict {class}\">\n<h2>{sentence}</h2>\n<ul>\n{rows}</ul>\n</section>\n")
}

pub(super) fn tiles(report: &Report, figures: &BTreeMap<String, Figure>) -> String {
    let tile = |name: &str, title: &str| {
        let figure = figures.get(name);
        let shown = figure.map_or_else(|| "–".to_owned(), |figure| figure.kind.unit.show(figure.value));
        let note = if figure.is_none() { "<small>not measured</small>" } else { "" };
        let never = matches!(name, "lost" | "duplicated");
        let class = if never && figure.is_some_and(|figure| figure.value > 0.0) { " bad" } else { "" };
        format!("<div class=\"tile{class}\"><dt>{title}</dt><dd>{shown}{note}</dd></div>\n")
    };
    let latency = |name: &str, title: &str| match report.latency.get(name) {
        Some(latency) if latency.count == 0 => {
            format!("<div class=\"tile\"><dt>{title}</dt><dd>–<small>no samples</small></dd></div>\n")
        }
        _ => tile(&format!("{name}_p95_ms"), title),
    };
    let tiles = [
        tile("success_ratio", "Success"),
        tile("lost", "Lost"),
        tile("duplicated", "Duplicated"),
        latency("puback", "PUBACK P95"),
        latency("stored", "Stored P95"),
        latency("alert", "Alert P95"),
        tile("server_rss_bytes", "Server memory"),
        tile("server_cpu_cores", "Server processor"),
    ];
    format!("<dl class=\"tiles\">\n{}</dl>\n", tiles.concat())
}

pub(super) fn latencies(report: &Report) -> String {
    let mut rows = String::new();
    for (name, title, latency) in figures::latencies_in_order(report).into_iter().take(ROWS_MAX) {
        let Latency { count: samples, p50_ms, p95_ms, p99_ms, p999_ms, max_ms } = *latency;
        let _ = write!(
            rows,
            "<tr><th scope=\"row\"><code>{}</code> <small>{title}</small></th><td>{}</td>",
            escape(name),
            count(samples)
        );
        for value in [p50_ms, p95_ms, p99_ms, p999_ms, max_ms] {
            let shown = if samples == 0 { "–".to_owned() } else { number(value) };
            let _ = write!(rows, "<td>{shown}</td>");
        }
        rows.push_str("</tr>\n");
    }
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<section>\n<h2>Latency in milliseconds</h2>\n<div class=\"wide\"><table>\n<thead><tr><th scope=\"col\">what</th>\
         <th scope=\"col\">samples</th><th scope=\"col\">P50</th><th scope=\"col\">P95</th><th scope=\"col\">P99</th>\
         <th scope=\"col\">P99.9</th><th scope=\"col\">max</th></tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n\
         <p class=\"quiet\">From the time at which a message was due, so that a wait before the send counts \
         (corrected for coordinated omission).</p>\n</section>\n"
    )
}

/// The list that the numbers above the plots refer to.
pub(super) fn faults(report: &Report, marks: &[Mark]) -> String {
    if report.faults.is_empty() {
        return String::new();
    }
    let mut rows = String::new();
    for (fault, mark) in report.faults.iter().zip(marks) {
        let until = match fault.until_s > fault.from_s {
            true => format!(" to {}", moment(fault.until_s)),
            false => String::new(),
        };
        let _ = writeln!(
            rows,
            "<tr><td class=\"number\">{}</td><th scope=\"row\">{}</th><td class=\"when\">{}{until}</td>\
             <td class=\"text\">{}</td></tr>",
            escape(&mark.label),
            escape(&fault.kind),
            moment(fault.from_s),
            escape(&fault.detail)
        );
    }
    let rest = report.faults.len() - marks.len();
    let rest = match rest {
        0 => String::new(),
        rest => {
            format!("<p class=\"quiet\">and {rest} more, which the JSON has and the plots do not show.</p>\n")
        }
    };
    format!(
        "<section>\n<h2>Faults</h2>\n<div class=\"wide\"><table class=\"faults\">\n<thead><tr><th scope=\"col\">no.</th>\
         <th scope=\"col\">kind</th><th scope=\"col\">time</th><th scope=\"col\">what it hit</th></tr></thead>\n\
         <tbody>\n{rows}</tbody></table></div>\n{rest}</section>\n"
    )
}

pub(super) fn totals(report: &Report) -> String {
    let totals = &report.totals;
    let mut rows = vec![
        ("records made by the schedule", totals.made),
        ("PUBLISHes sent, copies and repeats included", totals.published),
        ("records acknowledged", totals.acked),
        ("without an answer at the end", totals.unanswered),
        ("kept out by a full list in the device", totals.unsent),
        ("copies sent on purpose", totals.duplicates_sent),
        ("broken payloads sent on purpose", totals.poisoned_sent),
        ("connections made", totals.connects),
        ("of these again", totals.reconnects),
    ];
    if let Some(ledger) = &totals.ledger {
        rows.extend([
            ("ledger: accepted", ledger.accepted),
            ("ledger: stored", ledger.stored),
            ("ledger: dropped", ledger.dropped),
            ("ledger: pending", ledger.pending),
            ("ledger: lost", ledger.lost),
            ("ledger: duplicated", ledger.duplicated),
        ]);
    }
    let rows: Vec<(String, String)> =
        rows.into_iter().map(|(name, value)| (name.to_owned(), count(value))).collect();
    let reasons = |counts: &BTreeMap<String, u64>| -> Vec<(String, String)> {
        counts.iter().take(ROWS_MAX).map(|(reason, number)| (reason.clone(), count(*number))).collect()
    };
    format!(
        "<section class=\"pair\">\n{}{}{}</section>\n",
        pairs("Totals", &rows),
        pairs("Refused, by reason", &reasons(&totals.refused)),
        pairs("Connections ended, by reason", &reasons(&totals.closed)),
    )
}

pub(super) fn costs(report: &Report) -> String {
    let cost = &report.cost;
    let bytes = |value: u64| units::bytes(value as f64);
    let unknown = || "not measured".to_owned();
    let rows: Vec<(String, String)> = [
        ("server, processor", cost.server_cpu_cores.map_or_else(unknown, |cores| Unit::Cores.show(cores))),
        ("server, largest memory", cost.server_rss_bytes.map_or_else(unknown, bytes)),
        ("server, most open files", cost.server_files.map_or_else(unknown, count)),
        ("server, databases grew by", cost.stored_bytes.map_or_else(unknown, bytes)),
        ("generator, processor", Unit::Cores.show(cost.generator_cpu_cores)),
        ("generator, memory at the end", bytes(cost.generator_rss_bytes)),
        ("everything else, processor", Unit::Cores.show(cost.other_load_cores)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec();
    format!("<section class=\"pair\">\n{}</section>\n", pairs("Cost", &rows))
}

pub(super) fn repeat(report: &Report) -> String {
    let command: Vec<String> = report.setup.command.iter().map(|word| quoted(word)).collect();
    let processes = match report.setup.processes {
        0 | 1 => String::new(),
        processes => format!("<p class=\"quiet\">{processes} generator processes.</p>\n"),
    };
    format!(
        "<section>\n<h2>Run it again</h2>\n<pre><code>{}</code></pre>\n{processes}\
         <p class=\"quiet\">The seed {} repeats the schedule of messages and faults.</p>\n</section>\n",
        escape(&command.join(" ")),
        report.setup.seed
    )
}

fn pairs(title: &str, rows: &[(String, String)]) -> String {
    if rows.is_empty() {
        return format!("<div><h2>{title}</h2>\n<p class=\"quiet\">none</p></div>\n");
    }
    let mut out = format!("<div><h2>{title}</h2>\n<table>\n<tbody>\n");
    for (name, value) in rows {
        let _ = writeln!(out, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(name), escape(value));
    }
    out + "</tbody></table></div>\n"
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let safe = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=,@%+".contains(letter);
    match !word.is_empty() && word.chars().all(safe) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
