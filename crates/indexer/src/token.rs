//! Tokens: what an account shows to be let in. Shown once when made; only a hash is kept.
//!
//! A token has 256 random bits, so that a plain keyed hash keeps it as safe as a slow one would.

use std::io;

use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

/// What a token begins with, so that people and scanners know it.
const PREFIX: &str = "brant_";

/// Makes a token.
pub(crate) fn generate() -> io::Result<Zeroizing<String>> {
    let mut random = Zeroizing::new([0; 32]);
    getrandom::fill(&mut random[..]).map_err(|error| io::Error::other(error.to_string()))?;
    let mut token = Zeroizing::new(String::with_capacity(PREFIX.len() + 64));
    token.push_str(PREFIX);
    HEXLOWER.encode_append(&random[..], &mut token);
    Ok(token)
}

/// Whether text has the form of a token.
pub(crate) fn is_well_formed(text: &str) -> bool {
    let digits = text.strip_prefix(PREFIX);
    digits.is_some_and(|digits| digits.len() == 64 && HEXLOWER.decode(digits.as_bytes()).is_ok())
}

/// What is kept of a token.
pub(crate) fn hash(token: &str) -> [u8; 32] {
    blake3::derive_key("brant 2026-11 indexer token v1", token.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_recognised_and_differ() {
        let (one, two) = (generate().unwrap(), generate().unwrap());
        assert!(is_well_formed(&one) && is_well_formed(&two));
        assert_ne!(hash(&one), hash(&two));
        for bad in ["", "brant_", &one[1..], &one.to_uppercase(), &format!("{}0", *one)] {
            assert!(!is_well_formed(bad), "{bad}");
        }
    }
}
