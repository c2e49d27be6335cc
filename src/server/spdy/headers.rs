//! Header blocks: name/value pairs, compressed by zlib with SPDY/3's dictionary, one context per direction.

use bytes::{Buf, BufMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::ProtocolError;

/// Largest block in bytes once unpacked; Kubernetes' clients send less than a hundred.
const MAX_BLOCK: usize = 16 << 10;
/// Most pairs in a block.
const MAX_PAIRS: u32 = 256;

/// The words of the dictionary that stand in it with their length (draft section 2.6.10.1) ...
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
keep-alive origin";
/// ... and the text behind them.
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        bytes.put_u32(word.len() as u32);
        bytes.extend(word.bytes().map(|b| if b == b'_' { b' ' } else { b }));
    }
    bytes.extend_from_slice(TEXT.as_bytes());
    bytes
}

/// Reads the header blocks of one session in their order.
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    /// The pairs of the next block, names in lower case.
    pub fn read(&mut self, block: &[u8]) -> Result<Vec<(String, String)>, ProtocolError> {
        let wrong = |what: &str| ProtocolError(format!("header block: {what}"));
        let mut plain = Vec::with_capacity(1024);
        let start = self.0.total_in();
        loop {
            let used = (self.0.total_in() - start) as usize;
            let before = (self.0.total_in(), plain.len());
            match self.0.decompress_vec(&block[used..], &mut plain, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => break,
                Ok(_) => {
                    let used = (self.0.total_in() - start) as usize;
                    if used == block.len() && plain.len() < plain.capacity() {
                        break;
                    }
                    if plain.len() == plain.capacity() {
                        if plain.len() >= MAX_BLOCK {
                            return Err(wrong("too large"));
                        }
                        plain.reserve(plain.len());
                    } else if before == (self.0.total_in(), plain.len()) {
                        return Err(wrong("not whole"));
                    }
                }
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| wrong("another dictionary"))?;
                }
                Err(_) => return Err(wrong("not zlib data")),
            }
        }
        pairs(&plain).ok_or_else(|| wrong("not whole"))
    }
}

fn pairs(mut plain: &[u8]) -> Option<Vec<(String, String)>> {
    fn text(from: &mut &[u8]) -> Option<String> {
        let length = usize::try_from(from.try_get_u32().ok()?).ok()?;
        let text = from.get(..length)?;
        let text = String::from_utf8(text.to_vec()).ok()?;
        from.advance(length);
        Some(text)
    }
    let count = plain.try_get_u32().ok().filter(|n| *n <= MAX_PAIRS)?;
    let mut found = Vec::new();
    for _ in 0..count {
        found.push((text(&mut plain)?.to_ascii_lowercase(), text(&mut plain)?));
    }
    Some(found)
}

/// Writes the header blocks of one session.
pub struct Deflater(Compress);

impl Deflater {
    /// A fresh context.
    pub fn new() -> Result<Self, ProtocolError> {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(&dictionary()).map_err(|e| ProtocolError(format!("header dictionary: {e}")))?;
        Ok(Self(compress))
    }

    /// The next block.
    pub fn write(&mut self, pairs: &[(&str, &str)]) -> Result<Vec<u8>, ProtocolError> {
        let mut plain = Vec::new();
        plain.put_u32(pairs.len() as u32);
        for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
            plain.put_u32(text.len() as u32);
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        self.0
            .compress_vec(&plain, &mut block, FlushCompress::Sync)
            .map_err(|e| ProtocolError(format!("writing headers: {e}")))?;
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_drafts() {
        assert_eq!(dictionary().len(), 1423);
        let adler = Compress::new(Compression::fast(), true).set_dictionary(&dictionary()).unwrap();
        assert_eq!(adler, 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_are_read_in_order() {
        let (mut writer, mut reader) = (Deflater::new().unwrap(), Inflater::default());
        for value in ["stdin", "stdout", "error", &"x".repeat(5000)] {
            let block = writer.write(&[("streamType", value), ("host", "a")]).unwrap();
            let want = [("streamtype".to_owned(), value.to_owned()), ("host".to_owned(), "a".to_owned())];
            assert_eq!(reader.read(&block).unwrap(), want);
        }
        assert!(reader.read(b"nonsense").is_err());
    }

    #[test]
    fn a_block_that_grows_without_end_is_refused() {
        let block = Deflater::new().unwrap().write(&[("a", &"x".repeat(1 << 20))]);
        let mut whole = Compress::new(Compression::best(), true);
        whole.set_dictionary(&dictionary()).unwrap();
        let mut bomb = Vec::with_capacity(64 << 10);
        whole.compress_vec(&vec![0; 8 << 20], &mut bomb, FlushCompress::Sync).unwrap();
        assert!(Inflater::default().read(&bomb).is_err());
        assert!(block.is_err() || Inflater::default().read(&block.unwrap()).is_err());
    }
}
