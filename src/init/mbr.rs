//! The partition table at the start of a card: pure rules over its first sector.

/// Size of a sector, in bytes.
pub const SECTOR: u64 = 512;
const SIGNATURE: usize = 440;
const TABLE: usize = 446;
const ENTRY: usize = 16;

/// The first sector of a disk.
pub type Sector = [u8; SECTOR as usize];

/// A partition, in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// First sector.
    pub start: u32,
    /// How many.
    pub sectors: u32,
}

fn number(sector: &Sector, at: usize) -> u32 {
    u32::from_le_bytes([sector[at], sector[at + 1], sector[at + 2], sector[at + 3]])
}

/// The disk's identifier; `None` when there is no table.
pub fn identifier(sector: &Sector) -> Option<u32> {
    (sector[510..] == [0x55, 0xaa]).then(|| number(sector, SIGNATURE))
}

/// Partition `index`, from 1 to 4; `None` when the entry is empty.
pub fn partition(sector: &Sector, index: usize) -> Option<Partition> {
    let at = TABLE + (index - 1) * ENTRY;
    let found = Partition { start: number(sector, at + 8), sectors: number(sector, at + 12) };
    (sector[at + 4] != 0 && found.start != 0 && found.sectors != 0).then_some(found)
}

/// The sector with partition `index` reaching to the end of a disk of that many sectors; `None` when it does already,
/// or is no partition, or one lies behind it.
pub fn grown(sector: &Sector, index: usize, disk: u64) -> Option<Sector> {
    let own = partition(sector, index)?;
    if (1..=4).filter(|i| *i != index).filter_map(|i| partition(sector, i)).any(|p| p.start > own.start) {
        return None;
    }
    let end = disk.min(u64::from(u32::MAX));
    let sectors = u32::try_from(end.checked_sub(u64::from(own.start))?).ok()?;
    let mut new = *sector;
    let at = TABLE + (index - 1) * ENTRY;
    new[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
    (sectors > own.sectors).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(partitions: &[(u32, u32)]) -> Sector {
        let mut sector = [0; 512];
        sector[440..444].copy_from_slice(&0x1234_5678_u32.to_le_bytes());
        for (i, (start, sectors)) in partitions.iter().enumerate() {
            let at = 446 + i * 16;
            sector[at + 4] = 0x83;
            sector[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
            sector[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    #[test]
    fn the_last_partition_grows_to_the_end_and_nothing_else_changes() {
        let before = table(&[(2048, 1000), (4096, 1000)]);
        let after = grown(&before, 2, 100_000).unwrap();
        assert_eq!(partition(&after, 2), Some(Partition { start: 4096, sectors: 95_904 }));
        assert_eq!(partition(&after, 1), partition(&before, 1));
        assert_eq!(identifier(&after), Some(0x1234_5678));
        assert_eq!(grown(&after, 2, 100_000), None);
        assert_eq!(grown(&before, 1, 100_000), None);
        assert_eq!(grown(&before, 3, 100_000), None);
        assert_eq!(grown(&before, 2, 10), None);
        // what a table of this kind can say
        let huge = grown(&before, 2, 1 << 40).unwrap();
        assert_eq!(partition(&huge, 2).unwrap().sectors, u32::MAX - 4096);
    }

    #[test]
    fn a_disk_without_a_table_has_no_identifier() {
        assert_eq!(identifier(&[0; 512]), None);
    }
}
