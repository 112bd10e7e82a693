//! Base64 that comes in pieces (RFC 4648, 4), as the text of gRPC-Web does.
//!
//! In: characters. Out: the bytes of every group of four that is whole. Never: holds more than three characters.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::Refusal;

/// Characters that are no whole group yet.
#[derive(Debug, Clone, Default)]
pub struct Groups {
    rest: [u8; 4],
    length: usize,
}

impl Groups {
    /// Takes characters and adds their bytes to `out`. Every group stands for itself: a client may end a piece with padding and go on.
    ///
    /// # Errors
    /// What is no base64.
    pub fn decode(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        out.reserve(data.len() / 4 * 3 + 3);
        for byte in data {
            self.rest[self.length] = *byte;
            self.length += 1;
            if self.length == self.rest.len() {
                self.length = 0;
                let mut group = [0; 3];
                let length = STANDARD.decode_slice(self.rest, &mut group).map_err(|_| Refusal::Encoding)?;
                out.extend_from_slice(&group[..length]);
            }
        }
        Ok(())
    }

    /// Nothing more comes.
    ///
    /// # Errors
    /// A group was not whole.
    pub fn end(&self) -> Result<(), Refusal> {
        if self.length == 0 { Ok(()) } else { Err(Refusal::Encoding) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_give_the_same_bytes() {
        let text = b"aGVsbG8=IHdv";
        for size in 1..=text.len() {
            let (mut groups, mut out) = (Groups::default(), Vec::new());
            for piece in text.chunks(size) {
                groups.decode(piece, &mut out).unwrap();
            }
            assert_eq!((out.as_slice(), groups.end()), (&b"hello wo"[..], Ok(())), "{size}");
        }
        let mut groups = Groups::default();
        groups.decode(b"aGVsb", &mut Vec::new()).unwrap();
        assert_eq!(groups.end(), Err(Refusal::Encoding));
        for wrong in [&b"a*=="[..], b"=aGV", b"aG=V", b"\xff\xff\xff\xff"] {
            assert_eq!(Groups::default().decode(wrong, &mut Vec::new()), Err(Refusal::Encoding), "{wrong:?}");
        }
    }
}
