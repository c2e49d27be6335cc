//! How layers and archives are compressed, and reading them.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Largest zstd window: no level of a common compressor needs more.
const WINDOW: u64 = 32 << 20;

/// How something is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, of one member or more.
    Gzip,
    /// zstd.
    Zstd,
}

impl Compression {
    /// Whether a layer's media type is that of one which this store can unpack.
    pub fn knows(media_type: &str) -> bool {
        ["gzip", "zstd", "tar"].iter().any(|end| media_type.ends_with(end))
    }

    /// What the first bytes say.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // a frame, or one to skip (RFC 8878, 3.1.2)
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// The media type of a layer so compressed (OCI Image Layer).
    pub fn layer_media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// Decompresses.
    pub fn reader<'a>(self, from: impl BufRead + 'a) -> Box<dyn Read + 'a> {
        match self {
            Self::None => Box::new(from),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
            Self::Zstd => Box::new(Frames::new(from)),
        }
    }
}

/// zstd as the format has it: one frame after another, and some to skip.
struct Frames<R> {
    from: R,
    decoder: FrameDecoder,
    /// No frame was begun yet.
    fresh: bool,
}

impl<R: BufRead> Frames<R> {
    fn new(from: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW);
        Self { from, decoder, fresh: true }
    }

    /// Whether the last frame was what its checksum says, if it has one.
    fn check(&self) -> io::Result<()> {
        if self.fresh {
            return Ok(());
        }
        match (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum()) {
            (Some(given), Some(found)) if given != found => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "zstd: its checksum is another one"))
            }
            _ => Ok(()),
        }
    }

    /// Begins the next frame; false at the end.
    fn next(&mut self) -> io::Result<bool> {
        while !self.from.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.from) {
                Ok(()) => {
                    self.fresh = false;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.from).take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::other(format!("zstd: {error}"))),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.decoder.can_collect() == 0 {
            if !self.fresh && !self.decoder.is_finished() {
                let blocks = self.decoder.decode_blocks(&mut self.from, BlockDecodingStrategy::UptoBlocks(1));
                blocks.map_err(|e| io::Error::other(format!("zstd: {e}")))?;
            } else {
                self.check()?;
                if !self.next()? {
                    return Ok(0);
                }
            }
        }
        self.decoder.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zstd_of_several_frames_is_read_to_its_end() {
        let frame = |text: &[u8]| ruzstd::encoding::compress_to_vec(text, ruzstd::encoding::CompressionLevel::Fastest);
        let skipped = b"\x50\x2a\x4d\x18\x03\0\0\0???";
        let both = [&frame(b"one "), skipped.as_slice(), &frame(b"two")].concat();
        let mut text = String::new();
        Compression::of_bytes(&both).reader(both.as_slice()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
        let skipped_first = [skipped.as_slice(), &frame(b"three")].concat();
        assert_eq!(Compression::of_bytes(&skipped_first), Compression::Zstd);
        // the last four bytes are the checksum
        let mut wrong = frame(b"four");
        *wrong.last_mut().unwrap() ^= 1;
        let error = Compression::Zstd.reader(wrong.as_slice()).read_to_end(&mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("checksum"), "{error}");
    }
}
