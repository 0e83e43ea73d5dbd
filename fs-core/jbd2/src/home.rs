//! Writing blocks to their own places: sorted, and neighbours merged into one request.

use blockdev::BlockDevice;
use ext4_format::BlockNo;

use crate::bytes::BlockData;

/// Longest single request, in bytes. With blocks of 1 KiB it has as many parts as `IOV_MAX` allows.
pub(crate) const MAX_REQUEST: usize = 1 << 20;

/// Sorts `blocks` and writes each to its place. Block numbers must be distinct. Does not flush.
pub(crate) fn write_home(
    dev: &dyn BlockDevice,
    block_size: usize,
    blocks: &mut [(BlockNo, BlockData)],
) -> blockdev::Result<()> {
    blocks.sort_unstable_by_key(|(block, _)| *block);
    for run in blocks.chunk_by(|(a, _), (b, _)| a.0 + 1 == b.0) {
        for request in run.chunks((MAX_REQUEST / block_size).max(1)) {
            let offset = request[0].0.0 * block_size as u64;
            match request {
                [(_, data)] => dev.write_at(offset, data)?,
                many => {
                    let bufs: Vec<&[u8]> = many.iter().map(|(_, data)| &data[..]).collect();
                    dev.write_vectored_at(offset, &bufs)?;
                }
            }
        }
    }
    Ok(())
}
