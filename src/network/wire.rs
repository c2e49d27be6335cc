//! Netlink's messages as they come: for what strangers put into the kernel, which need not be what a library knows.

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// `NLA_TYPE_MASK`: the rest of a type are flags.
const TYPE: u16 = 0x3fff;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A message: its type, and what follows its header.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// All but the header.
    pub body: &'a [u8],
}

/// The messages of one answer; what is cut off is left out.
pub fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let message = Message { kind: u16_at(rest, 4)?, body: rest.get(HEADER..length)? };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Attributes by their types.
pub fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(u16_at(rest, 0)?), u16_at(rest, 2)?);
        let value = rest.get(ATTRIBUTE..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE, value))
    })
}

/// The attribute of that type.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// A text without the NUL at its end.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// A number as netfilter has them.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_left_out() {
        let mut bytes = vec![24, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 3, 0x80, b'l', b'o', 0, 0];
        let one: Vec<(u16, Vec<u8>)> = messages(&bytes).map(|m| (m.kind, m.body.to_vec())).collect();
        assert_eq!(one.len(), 1);
        assert_eq!((one[0].0, text(attribute(&one[0].1, 3).unwrap())), (16, "lo".to_owned()));
        assert!(attribute(&one[0].1, 4).is_none());
        bytes.extend([200, 0, 0, 0, 16, 0, 0, 0]);
        assert_eq!(messages(&bytes).count(), 1);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0, "shorter than its own header");
        assert_eq!(messages(&[0; 40]).count(), 0);
    }
}
