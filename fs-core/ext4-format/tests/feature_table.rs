//! docs/FORMAT.md says about every feature what the table in the code says. `REXT4_WRITE_DOCS=1` rewrites it.

use std::fmt::Write as _;
use std::path::Path;

use ext4_format::features::{TABLE, Word};

const BEGIN: &str = "<!-- features:begin -->\n";
const END: &str = "<!-- features:end -->\n";

#[test]
fn the_documented_feature_table_is_the_real_one() {
    let mut table = String::from("| feature | word | bit | rext4 |\n|---|---|---|---|\n");
    for feature in TABLE {
        let word = match feature.word {
            Word::Compat => "compat",
            Word::RoCompat => "ro_compat",
            Word::Incompat => "incompat",
        };
        writeln!(table, "| `{}` | {word} | {:#x} | {} |", feature.name, feature.mask, feature.support)
            .unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/FORMAT.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let from = text.find(BEGIN).expect("the table's begin") + BEGIN.len();
    let to = text.find(END).expect("the table's end");
    if std::env::var_os("REXT4_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{}{table}{}", &text[..from], &text[to..])).unwrap();
    } else {
        assert!(text[from..to] == table, "run this test with REXT4_WRITE_DOCS=1 and commit docs/FORMAT.md");
    }
}
