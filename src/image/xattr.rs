//! Extended attributes, without following links.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::libc;

fn c(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

/// `lsetxattr(2)`.
pub fn set(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (c(path.as_os_str())?, CString::new(name)?);
    // SAFETY: both names are NUL-terminated and live through the call; the value's pointer and length belong together.
    let result = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Calls what fills a buffer, with one that is large enough; nothing where the file system knows no attributes.
fn filled(call: impl Fn(*mut libc::c_void, usize) -> isize) -> io::Result<Option<Vec<u8>>> {
    let mut buffer: Vec<u8> = Vec::new();
    loop {
        let result = call(buffer.as_mut_ptr().cast(), buffer.len());
        let Ok(size) = usize::try_from(result) else {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::ENODATA | libc::EOPNOTSUPP) => return Ok(None),
                // it has grown since its size was asked for
                Some(libc::ERANGE) => buffer.clear(),
                _ => return Err(error),
            }
            continue;
        };
        // a buffer without length asks for the size
        if size == 0 || !buffer.is_empty() {
            buffer.truncate(size);
            return Ok(Some(buffer));
        }
        buffer = vec![0; size];
    }
}

/// `lgetxattr(2)`; `None` without such an attribute.
pub fn get(path: &Path, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let (path, name) = (c(path.as_os_str())?, c(name)?);
    // SAFETY: both names are NUL-terminated and live through the call; pointer and size are those of one buffer.
    filled(|buffer, size| unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer, size) })
}

/// `llistxattr(2)`.
pub fn list(path: &Path) -> io::Result<Vec<OsString>> {
    let path = c(path.as_os_str())?;
    // SAFETY: the name is NUL-terminated and lives through the call; pointer and size are those of one buffer.
    let names = filled(|buffer, size| unsafe { libc::llistxattr(path.as_ptr(), buffer.cast(), size) })?;
    let names = names.unwrap_or_default();
    Ok(names.split(|b| *b == 0).filter(|n| !n.is_empty()).map(|n| OsString::from_vec(n.to_vec())).collect())
}
