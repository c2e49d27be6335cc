//! The terminal a command was typed on.
#![allow(unsafe_code)]

use std::io::IsTerminal;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

nix::ioctl_read_bad!(window_size, nix::libc::TIOCGWINSZ, nix::pty::Winsize);

/// Columns and rows; `None` when standard output is no terminal.
pub fn size() -> Option<(u16, u16)> {
    let mut size = nix::pty::Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one Winsize, and size is one.
    unsafe { window_size(1, &raw mut size) }.ok()?;
    Some((size.ws_col, size.ws_row))
}

/// Keys go through as they are until this is dropped.
pub struct Raw(Termios);

impl Raw {
    /// `None` when standard input is no terminal.
    pub fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // nothing can be done about a terminal that is gone
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
