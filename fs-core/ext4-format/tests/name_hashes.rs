//! Name hashes against the answers of `debugfs dx_hash`.

use std::process::Command;

use ext4_format::hash::{Hash, HashVersion, name_hash};

#[test]
fn hashes_are_those_of_debugfs() {
    let names = [
        "a",
        "ab",
        "four",
        "lost+found",
        "seventeen-letters",
        "exactly-thirty-two-bytes-long---",
        "a name that is longer than thirty two bytes and so needs a second and third round of the digest",
        "Grüße-und-ähnliches-ÿ",
    ];
    let seed_text = "c8a1e3d0-5b7f-4c29-9e64-0f1122334455";
    let bytes: Vec<u8> = (0..16)
        .map(|i| u8::from_str_radix(&seed_text.replace('-', "")[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    let seed = std::array::from_fn(|i| u32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap()));
    let mut script = String::new();
    let mut expected = Vec::new();
    for (version, spelled) in [
        (HashVersion::Legacy, "legacy"),
        (HashVersion::HalfMd4, "half_md4"),
        (HashVersion::Tea, "tea"),
        (HashVersion::LegacyUnsigned, "3"),
        (HashVersion::HalfMd4Unsigned, "4"),
        (HashVersion::TeaUnsigned, "5"),
    ] {
        for name in names {
            for seeded in [false, true] {
                let option = if seeded { format!("-s {seed_text}") } else { String::new() };
                script.push_str(&format!("dx_hash -h {spelled} {option} \"{name}\"\n"));
                let seed = if seeded { seed } else { [0; 4] };
                expected.push((
                    format!("{version:?} {name} {seeded}"),
                    name_hash(version, seed, name.as_bytes()),
                ));
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script");
    std::fs::write(&file, script).unwrap();
    let Ok(output) = Command::new("debugfs").arg("-f").arg(&file).output() else {
        assert!(std::env::var_os("CI").is_none(), "debugfs is missing");
        eprintln!("SKIPPED: debugfs is missing");
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Hash> = text
        .lines()
        .filter_map(|line| line.strip_prefix("Hash of "))
        .map(|line| {
            let hex = |word: &str| {
                let tail = word.trim_start_matches("0x").trim_end_matches(')');
                u32::from_str_radix(tail, 16).unwrap()
            };
            let mut words = line.rsplit(' ');
            let minor = hex(words.next().unwrap());
            Hash { minor, major: hex(words.nth(1).unwrap()) }
        })
        .collect();
    assert_eq!(answers.len(), expected.len(), "{text}");
    for ((case, ours), theirs) in expected.iter().zip(answers) {
        assert_eq!(*ours, Some(theirs), "{case}");
    }
}
