//! Results as a Markdown table and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::contender::Contender;
use super::{Results, Setup};
use crate::run::{run, tool};
use crate::system::System;

/// Kernel, processors, versions: what a table must say to be read later.
pub fn machine() -> String {
    let kernel = run(tool("uname").arg("-sr")).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let fuse2fs = crate::run::output(tool("fuse2fs").arg("-V")).map(|answer| crate::run::both(&answer));
    let fuse2fs = fuse2fs
        .ok()
        .and_then(|said| said.lines().find(|line| line.starts_with("fuse2fs")).map(str::to_owned))
        .unwrap_or_default();
    format!("{}, {cpus} processors, {}", kernel.trim(), fuse2fs.trim())
}

/// A figure with three significant digits.
pub fn figure(value: f64) -> String {
    match value {
        1e5.. => format!("{:.0}k", value / 1e3),
        1e4.. => format!("{:.1}k", value / 1e3),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Two tables, speed and memory, with the warnings under them.
pub fn markdown(results: &Results, setup: &Setup) -> String {
    let reference = setup.contenders[0];
    let mut text = format!(
        "{}; backing file in {}; median of {} rounds (fuse2fs: one), spread in brackets; ratio to {} above one is \
         faster\n\n",
        machine(),
        setup.backing.display(),
        setup.rounds,
        reference.name,
    );
    text += "| workload | unit |";
    for contender in &setup.contenders {
        let _ = write!(text, " {} |", contender.name);
        if *contender != reference {
            text += " ratio |";
        }
    }
    let columns = 2 + 2 * setup.contenders.len();
    let _ = writeln!(text, " target |\n|{}", "---|".repeat(columns));
    let mut notes = Vec::new();
    for row in &results.rows {
        let _ = write!(text, "| {} | {} |", row.name, row.unit);
        for &contender in &setup.contenders {
            let figures = results.of(row, contender);
            match figures.and_then(|figures| Some((figures.median()?, figures.spread()))) {
                Some((median, spread)) => {
                    let _ = write!(text, " {} ({:.0} %) |", figure(median), spread * 100.0);
                }
                None => text += " void |",
            }
            if let Some(why) = figures.and_then(|figures| figures.void.as_ref()) {
                let first = why.lines().next().unwrap_or_default();
                notes.push(format!("void: {} on {}: {first}", row.name, contender.name));
            }
            if contender == reference {
                continue;
            }
            let Some(ratio) = results.ratio(row, contender, reference) else {
                text += " |";
                continue;
            };
            let doubtful = results.is_doubtful(row, contender, reference);
            let misses = contender.system == System::Rext4Image
                && reference.system == System::Kernel
                && ratio < row.target_of(contender);
            let _ = write!(
                text,
                " {ratio:.2}{}{} |",
                if doubtful { "~" } else { "" },
                if misses { " (misses)" } else { "" }
            );
            if doubtful {
                notes.push(format!("spread wider than the difference: {} on {}", row.name, contender.name));
            }
        }
        let with_rings = row.target_with_rings.map(|target| format!(", ring {target:.2}"));
        let _ = writeln!(text, " {:.2}{} |", row.target, with_rings.unwrap_or_default());
    }
    text += &memory(results, setup);
    for note in notes {
        let _ = writeln!(text, "\n{note}");
    }
    text
}

fn memory(results: &Results, setup: &Setup) -> String {
    let servers: Vec<Contender> =
        setup.contenders.iter().copied().filter(|one| one.system != System::Kernel).collect();
    if servers.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = servers.iter().map(|server| server.name).collect();
    let mut text = format!(
        "\n| server's peak memory, MiB | {} |\n|{}\n",
        names.join(" | "),
        "---|".repeat(names.len() + 1)
    );
    let mut parts: Vec<&String> = results.memory.keys().map(|(part, _)| part).collect();
    parts.dedup();
    for part in parts {
        let _ = write!(text, "| {part} |");
        for name in &names {
            let kib = results.memory.get(&(part.clone(), name)).copied().unwrap_or(0);
            let _ = write!(text, " {} |", kib / 1024);
        }
        text.push('\n');
    }
    text
}

/// Every value of every round.
pub fn json(results: &Results, setup: &Setup) -> Value {
    let rows: Vec<Value> = results
        .rows
        .iter()
        .map(|row| {
            let systems: serde_json::Map<String, Value> = setup
                .contenders
                .iter()
                .filter_map(|contender| {
                    let figures = results.of(row, *contender)?;
                    let ratio = results.ratio(row, *contender, setup.contenders[0]);
                    let value = json!({"values": figures.values, "median": figures.median(), "ratio": ratio, "void": figures.void});
                    Some((contender.name.to_owned(), value))
                })
                .collect();
            json!({"name": row.name, "unit": row.unit, "less_is_better": row.less_is_better, "target": row.target, "target_with_rings": row.target_with_rings, "systems": systems})
        })
        .collect();
    let memory: Vec<Value> = results
        .memory
        .iter()
        .map(|((part, system), kib)| json!({"part": part, "system": system, "peak_kib": kib}))
        .collect();
    json!({"machine": machine(), "rounds": setup.rounds, "reference": setup.contenders[0].name, "rows": rows, "memory": memory})
}
