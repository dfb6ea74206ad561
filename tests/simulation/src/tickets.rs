//! Tickets as Traffic Server makes and takes them: OpenSSL's layout of RFC 5077 section 4, key name
//! 16, IV 16, AES-128-CBC text, HMAC-SHA256 over all before it 32 bytes.

use openssl::memcmp;
use openssl::sha::Sha256;
use openssl::symm::{decrypt, encrypt, Cipher};

use crate::cells::Bytes;
use crate::rng::Rng;

/// What a client got from a server.
#[derive(Clone, Debug)]
pub struct Ticket {
    bytes: Vec<u8>,
    session: Vec<u8>,
}

fn parts(key: &Bytes) -> (&[u8], &[u8], &[u8]) {
    let (name, secrets) = key.split_at(16);
    let (hmac, aes) = secrets.split_at(16);
    (name, hmac, aes)
}

/// HMAC-SHA256 (RFC 2104), some ten times as fast here as through OpenSSL 3's keys: a seed makes and tries
/// hundreds of thousands.
fn mac(secret: &[u8], over: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    assert!(secret.len() <= BLOCK, "a longer one would be hashed first");
    let keyed = |pad: u8| {
        let mut block = [pad; BLOCK];
        block.iter_mut().zip(secret).for_each(|(byte, secret)| *byte ^= secret);
        let mut hash = Sha256::new();
        hash.update(&block);
        hash
    };
    let (mut inner, mut outer) = (keyed(0x36), keyed(0x5c));
    inner.update(over);
    outer.update(&inner.finish());
    outer.finish()
}

/// A new session's ticket, made with the encrypting key.
pub fn seal(key: &Bytes, rng: &mut Rng) -> Ticket {
    let (name, hmac, aes) = parts(key);
    let session: Vec<u8> = (0..6).flat_map(|_| rng.next().to_le_bytes()).collect();
    let iv: Vec<u8> = (0..2).flat_map(|_| rng.next().to_le_bytes()).collect();
    let text = encrypt(Cipher::aes_128_cbc(), aes, Some(&iv), &session).expect("AES-128-CBC");
    let mut bytes = [name, &iv, &text].concat();
    bytes.extend(mac(hmac, &bytes));
    Ticket { bytes, session }
}

/// Which of the keys opens the ticket; none, if the server would make a full handshake.
pub fn open(ticket: &Ticket, keys: &[Bytes]) -> Option<usize> {
    let (body, given) = ticket.bytes.split_last_chunk::<32>()?;
    let (head, text) = body.split_first_chunk::<32>()?;
    let (name, iv) = head.split_at(16);
    // The host looks a key up by the ticket's name, all 16 bytes of it.
    let at = keys.iter().position(|key| parts(key).0 == name)?;
    let (_, hmac, aes) = parts(&keys[at]);
    if !memcmp::eq(&mac(hmac, body), given) {
        return None;
    }
    let session = decrypt(Cipher::aes_128_cbc(), aes, Some(iv), text).ok()?;
    (session == ticket.session).then_some(at)
}

#[cfg(test)]
mod tests {
    use openssl::hash::MessageDigest;
    use openssl::pkey::PKey;
    use openssl::sign::Signer;

    use super::*;

    #[test]
    fn the_mac_is_what_openssl_makes() {
        for (secret, over) in [(16, 0), (16, 97), (64, 64), (1, 1000)] {
            let (secret, over) = (vec![7; secret], vec![9; over]);
            let key = PKey::hmac(&secret).unwrap();
            let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
            assert_eq!(signer.sign_oneshot_to_vec(&over).unwrap(), mac(&secret, &over));
        }
    }
}
