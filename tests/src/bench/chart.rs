//! Ratios to the reference as bars on a logarithmic scale, in SVG.

use std::fmt::Write as _;

use super::contender::Contender;
use super::{Results, Setup};
use crate::system::System;

const LABEL: f64 = 400.0;
const WIDTH: f64 = 560.0;
const BAR: f64 = 9.0;
const GAP: f64 = 10.0;
const HEAD: f64 = 60.0;
/// The scale goes from a hundredth to ten times.
const LOWEST: f64 = 0.01;
const DECADES: f64 = 3.0;

fn color(contender: Contender) -> &'static str {
    match (contender.system, contender.transport) {
        (System::Kernel, _) => "#888888",
        (System::Fuse2fs, _) => "#c0504d",
        (System::Rext4Image, Some("fuser")) => "#9bbb59",
        (System::Rext4Image, Some("dev")) => "#f79646",
        (System::Rext4Image, _) => "#2e75b6",
        (System::Rext4Loop, _) => "#8db4e2",
    }
}

fn place(ratio: f64) -> f64 {
    LABEL + WIDTH * ((ratio / LOWEST).log10() / DECADES).clamp(0.0, 1.0)
}

/// The whole picture.
pub fn svg(results: &Results, setup: &Setup) -> String {
    let reference = setup.contenders[0];
    let others: Vec<Contender> = setup.contenders.iter().copied().filter(|one| *one != reference).collect();
    let step = BAR * others.len() as f64 + GAP;
    let height = HEAD + step * results.rows.len() as f64 + 20.0;
    let total = LABEL + WIDTH + 60.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{total}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let _ =
        writeln!(text, "<text x=\"10\" y=\"20\" font-size=\"14\">times as fast as {}</text>", reference.name);
    for (index, contender) in others.iter().enumerate() {
        let x = LABEL + 130.0 * index as f64;
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"11\" width=\"10\" height=\"10\" fill=\"{}\"/>",
            color(*contender)
        );
        let _ = writeln!(text, "<text x=\"{}\" y=\"20\">{}</text>", x + 14.0, contender.name);
    }
    for tick in [0.01, 0.1, 1.0, 10.0] {
        let (x, width) = (place(tick), if tick == 1.0 { 1.5 } else { 0.5 });
        let _ = writeln!(
            text,
            "<line x1=\"{x}\" x2=\"{x}\" y1=\"{HEAD}\" y2=\"{height}\" stroke=\"#999\" stroke-width=\"{width}\"/>\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>",
            HEAD - 6.0
        );
    }
    for (index, row) in results.rows.iter().enumerate() {
        let top = HEAD + GAP / 2.0 + step * index as f64;
        let middle = top + BAR * others.len() as f64 / 2.0 + 4.0;
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>",
            LABEL - 8.0,
            row.name
        );
        for (line, contender) in others.iter().enumerate() {
            let Some(ratio) = results.ratio(row, *contender, reference) else { continue };
            let (y, end) = (top + BAR * line as f64, place(ratio));
            let _ = writeln!(
                text,
                "<rect x=\"{LABEL}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{}\" font-size=\"9\">{ratio:.2}</text>",
                (end - LABEL).max(1.0),
                BAR - 1.0,
                color(*contender),
                end + 4.0,
                y + BAR - 1.0
            );
        }
    }
    text + "</svg>\n"
}
