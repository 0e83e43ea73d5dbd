//! The records of PAX headers: `LENGTH KEY=VALUE\n`, values of any bytes.
//!
//! Source: POSIX.1-2017, pax, "pax Extended Header"; the keys of star (`SCHILY.`), GNU tar (`GNU.sparse.`),
//! libarchive (`LIBARCHIVE.`) and Red Hat (`RHT.`) as these programs write them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ext4_format::inode::Time;

use super::super::attributes::NamedValue;
use super::super::layer::list_from_text;

/// Records in force: a later one replaces an earlier one, an empty value removes it.
#[derive(Clone, Debug, Default)]
pub struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `GNU.sparse.offset` and `GNU.sparse.numbytes`, which come once for each piece.
    pub pieces: Vec<(bool, Vec<u8>)>,
}

impl Records {
    /// Adds the records of a header's body.
    pub fn add(&mut self, body: &[u8]) -> Result<(), String> {
        let mut rest = body;
        while !rest.is_empty() && rest[0] != 0 {
            let space =
                rest.iter().take(20).position(|byte| *byte == b' ').ok_or("a PAX record without length")?;
            let len = number(&rest[..space]).and_then(|len| usize::try_from(len).ok());
            let len = len
                .filter(|len| (space + 4..=rest.len()).contains(len))
                .ok_or("a PAX record of wrong length")?;
            let (record, after) = rest.split_at(len);
            let record =
                record[space + 1..].strip_suffix(b"\n").ok_or("a PAX record without its line end")?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or("a PAX record without =")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"GNU.sparse.offset" => self.pieces.push((true, value.to_vec())),
                b"GNU.sparse.numbytes" => self.pieces.push((false, value.to_vec())),
                _ if value.is_empty() => {
                    self.values.remove(key);
                }
                _ => {
                    self.values.insert(key.to_vec(), value.to_vec());
                }
            }
            rest = after;
        }
        Ok(())
    }

    /// These records with those of one member on top.
    pub fn with(&self, local: &Records) -> Records {
        let mut all = self.clone();
        all.values.extend(local.values.clone());
        all.pieces.clone_from(&local.pieces);
        all
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.values.get(key.as_bytes()).map(Vec::as_slice)
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<u64>, String> {
        self.get(key)
            .map(|value| number(value).ok_or_else(|| format!("PAX record {key} is no number")))
            .transpose()
    }

    /// A time: seconds with a fraction, perhaps negative.
    pub fn time(&self, key: &str) -> Result<Option<Time>, String> {
        self.get(key)
            .map(|value| time(value).ok_or_else(|| format!("PAX record {key} is no time")))
            .transpose()
    }

    /// Extended attributes and access control lists, as the system call shows them.
    pub fn attributes(&self) -> Result<Vec<NamedValue>, String> {
        let mut found: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for (key, value) in &self.values {
            if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                let wrong = || format!("attribute {} is not base64", name.escape_ascii());
                let value = STANDARD.decode(value).or_else(|_| STANDARD_NO_PAD.decode(value));
                found.insert(percent_decoded(name), value.map_err(|_| wrong())?);
            }
        }
        for (key, value) in &self.values {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                found.insert(name.to_vec(), value.clone());
            }
            if key == b"RHT.security.selinux" {
                // The tools of SELinux store the label with its terminating zero.
                let mut label = value.clone();
                label.push(0);
                found.entry(b"security.selinux".to_vec()).or_insert(label);
            }
        }
        for (key, default) in [("SCHILY.acl.access", false), ("SCHILY.acl.default", true)] {
            if let Some(text) = self.get(key) {
                let (name, value) = list_from_text(&String::from_utf8_lossy(text), default)?;
                found.insert(name, value);
            }
        }
        Ok(found.into_iter().collect())
    }
}

/// A decimal number.
pub fn number(text: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text).ok()?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Seconds with a fraction.
pub fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let sec = i64::try_from(number(whole.as_bytes())?).ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nsec = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nsec = nsec.fold(0, |nsec, digit| nsec * 10 + u32::from(digit - b'0'));
    Some(match (negative, nsec) {
        (false, _) => Time { sec, nsec },
        (true, 0) => Time { sec: -sec, nsec },
        (true, _) => Time { sec: -sec - 1, nsec: 1_000_000_000 - nsec },
    })
}

fn percent_decoded(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut at = 0;
    while at < name.len() {
        let hex = name.get(at + 1..at + 3).and_then(|two| std::str::from_utf8(two).ok());
        match hex.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) if name[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(name[at]);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(body: &[u8]) -> Result<Records, String> {
        let mut records = Records::default();
        records.add(body).map(|()| records)
    }

    #[test]
    fn values_may_hold_any_bytes() {
        let found = records(b"27 SCHILY.xattr.user.a=\n=\0\n12 path=abc\n").unwrap();
        assert_eq!(found.get("path"), Some(&b"abc"[..]));
        assert_eq!(found.attributes().unwrap(), [(b"user.a".to_vec(), b"\n=\0".to_vec())]);
        let other = records(b"40 LIBARCHIVE.xattr.user.b%3Dc=AAECAw==\n").unwrap();
        assert_eq!(other.attributes().unwrap(), [(b"user.b=c".to_vec(), vec![0, 1, 2, 3])]);
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(time(b"1.5"), Some(Time { sec: 1, nsec: 500_000_000 }));
        assert_eq!(time(b"-1.25"), Some(Time { sec: -2, nsec: 750_000_000 }));
        assert_eq!(time(b"7.1234567899"), Some(Time { sec: 7, nsec: 123_456_789 }));
        assert_eq!((time(b"x"), time(b"1.x"), time(b"")), (None, None, None));
    }

    #[test]
    fn damaged_records_are_refused() {
        for body in [&b"5 a=b"[..], b"99 a=b\n", b"x a=b\n", b"6 ab\n\n", b"0 \n", b"7 path\n"] {
            assert!(records(body).is_err(), "{}", body.escape_ascii());
        }
    }
}
