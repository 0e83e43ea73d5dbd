//! The encryption context of an inode: the policy that it follows, and a nonce of its own. It is the value of
//! the attribute with the name index [`crate::xattr::INDEX_ENCRYPTION`] and the name `c`.
//! Source: kernel documentation, filesystems/fscrypt, "Encryption context".

/// The name of the attribute behind its name index.
pub const CONTEXT_NAME: &[u8] = b"c";
/// Bytes of the shortest encrypted name: shorter ones are padded before they are encrypted.
pub const LEAST_NAME: usize = 16;

/// Bytes of the nonce at the end of a context.
const NONCE: usize = 16;
/// Bytes of a context in front of its nonce, by version.
const POLICY: [(u8, usize); 2] = [(1, 12), (2, 24)];

/// The policy in a context: its version, modes, flags and the name of its key. Equal policies are equal bytes.
///
/// # Errors
/// What is wrong with the context: a version that does not exist, or a length that is not its version's.
pub fn policy(context: &[u8]) -> Result<&[u8], &'static str> {
    let version = context.first().copied().unwrap_or(0);
    let (_, len) = POLICY.iter().find(|row| row.0 == version).ok_or("version")?;
    if context.len() != len + NONCE {
        return Err("length");
    }
    Ok(&context[..*len])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_the_context_without_its_nonce() {
        let mut context = [7; 40];
        context[0] = 2;
        assert_eq!(policy(&context), Ok(&context[..24]));
        assert_eq!(policy(&context[..28]), Err("length"));
        context[0] = 1;
        assert_eq!(policy(&context[..28]), Ok(&context[..12]));
        context[0] = 3;
        assert_eq!(policy(&context), Err("version"));
        assert_eq!(policy(&[]), Err("version"));
    }
}
