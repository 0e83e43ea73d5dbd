//! Multi-mount protection: is the volume in use on another machine?

use ext4_format::features::Incompat;
use ext4_format::mmp::{Mmp, SEQ_CLEAN};

use crate::context::Context;
use crate::error::Result;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter};

/// Checks the protection block. A volume that says it is in use is checked all the same with `-n`; otherwise
/// the block is cleared only when that is agreed to.
pub fn check(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    if !ctx.sb.incompat().has(Incompat::MMP) {
        return Ok(());
    }
    let Some(block) = ctx.sb.mmp_block().filter(|block| ctx.on_volume(*block, 1)) else {
        let why = "the multi-mount protection block lies outside the volume";
        if prompter.ask(Problem::new(Code::SuperFeatures).named(why))? {
            ctx.edit_super(|raw| {
                raw.feature_incompat.set(raw.feature_incompat.get() & !Incompat::MMP.0);
                raw.mmp_block.set(0);
            });
        }
        return Ok(());
    };
    let damage = match Mmp::decode(&ctx.disk.read(block)?, &ctx.csum) {
        Ok(mmp) if mmp.seq.get() == SEQ_CLEAN => return Ok(()),
        Ok(_) => None,
        Err(corruption) => Some(corruption.field),
    };
    let problem = match damage {
        Some(why) => Problem::new(Code::MmpDamaged).at(block).named(why),
        None => Problem::new(Code::MmpInUse).at(block),
    };
    if prompter.ask(problem)? {
        let mut bytes = vec![0; ctx.disk.block_size()];
        Mmp::clean(ctx.sb.mmp_interval(), u64::from(ctx.options.now())).encode_into(&mut bytes, &ctx.csum);
        ctx.disk.write(block, &bytes)?;
    }
    Ok(())
}
