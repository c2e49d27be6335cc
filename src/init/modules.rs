//! Loads the image's kernel modules, in the order that was found out when it was made.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// Loads the modules that `order` in the folder names, one a line. What cannot be loaded is told, and the rest goes on:
/// which of them a board needs is known to nobody but the board.
pub fn load(folder: &Path) -> Vec<String> {
    let order = match fs::read_to_string(folder.join("order")) {
        Ok(order) => order,
        Err(error) => return vec![format!("no list of kernel modules in {}: {error}", folder.display())],
    };
    let load = |name: &str| {
        let file = fs::File::open(folder.join(name)).map_err(|e| format!("module {name}: {e}"))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            // of another board, or there already
            Ok(()) | Err(Errno::EEXIST | Errno::ENODEV) => Ok(()),
            Err(error) => Err(format!("module {name} not loaded: {error}")),
        }
    };
    order.lines().filter_map(|name| load(name).err()).collect()
}
