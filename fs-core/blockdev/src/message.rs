//! How an error is told to people: one line, each reason once, without the number that Rust adds to the
//! system's words.

use std::error::Error;
use std::iter::successors;

/// An error and its causes, outermost first, separated by colons. A cause that its effect already quotes is
/// not repeated.
///
/// `cannot open x: Permission denied (os error 13): Permission denied` becomes
/// `cannot open x: Permission denied`.
#[must_use]
pub fn in_one_line(error: &(dyn Error + 'static)) -> String {
    let chain = successors(Some(error), |&error| error.source());
    chain.map(|error| plain(&error.to_string())).fold(String::new(), |line, cause| {
        if line.is_empty() {
            cause
        } else if cause.is_empty() || line == cause || line.ends_with(&format!(": {cause}")) {
            line
        } else {
            format!("{line}: {cause}")
        }
    })
}

/// The text in one line, without ` (os error N)`.
#[must_use]
pub fn plain(text: &str) -> String {
    const NUMBER: &str = " (os error ";
    let mut line = text.trim_end().replace('\n', " ");
    let mut from = 0;
    while let Some(start) = line[from..].find(NUMBER).map(|at| from + at) {
        let digits = &line[start + NUMBER.len()..];
        match digits.find(|c: char| !c.is_ascii_digit()) {
            Some(len) if len > 0 && digits[len..].starts_with(')') => {
                line.replace_range(start..start + NUMBER.len() + len + 1, "");
            }
            _ => from = start + NUMBER.len(),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open {name}: {source}")]
    struct Quoting {
        name: &'static str,
        source: io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot mount x")]
    struct Outer(#[source] Quoting);

    #[test]
    fn a_reason_is_told_once_and_without_its_number() {
        let inner = Quoting { name: "a (os error x) b", source: io::Error::from_raw_os_error(13) };
        let told = in_one_line(&Outer(inner));
        assert_eq!(told, "cannot mount x: cannot open a (os error x) b: Permission denied");
        assert_eq!(in_one_line(&io::Error::from_raw_os_error(2)), "No such file or directory");
        assert_eq!(in_one_line(&io::Error::other("two\nlines")), "two lines");
    }
}
