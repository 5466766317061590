//! `brant ganeti orphans`: volumes that are left of instances which there are no more.

use ganeti::{Luxi, Orphan};
use node::api::{ApiError, ErrorCode};
use serde_json::{Value, json};

use crate::context::Context;
use crate::failure::Outcome;
use crate::output::View;
use crate::output::table::Table;
use crate::output::text::size;

/// Lists them; removes those that nothing is attached to, where that is asked for.
pub(crate) async fn run(context: &Context, remove: bool) -> Outcome {
    let orphans = ganeti::orphans(&context.client, &Luxi::default()).await?;
    let mut refused: Option<ApiError> = None;
    let mut listed = Vec::new();
    for orphan in &orphans {
        let mut removed = false;
        if remove && orphan.volume.attached.is_empty() {
            match context.client.remove_volume(orphan.volume.name.as_str(), false).await {
                Ok(_) => removed = true,
                // Somebody else was faster.
                Err(error) if error.code == ErrorCode::NotFound => {}
                // The others are removed all the same.
                Err(error) => drop(refused.get_or_insert(error)),
            }
        }
        listed.push(json(orphan, removed));
    }
    context.output.list(&listed, "every volume here belongs to an instance that there is", |view| {
        table(&orphans, &listed, view)
    })?;
    let left = listed.iter().filter(|orphan| orphan["removed"] == false).count();
    if remove && left < listed.len() {
        context.output.note("take one back with: brant volume restore VOLUME");
    }
    if remove && left > 0 && refused.is_none() {
        context.output.note("what is attached was left: brant detach VOLUME, if nobody needs it");
    }
    match refused {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

fn json(orphan: &Orphan, removed: bool) -> Value {
    json!({
        "volume": orphan.volume.name,
        "instance": orphan.instance,
        "size_bytes": orphan.volume.size_bytes,
        "attached": orphan.volume.attached,
        "removed": removed,
    })
}

fn table(orphans: &[Orphan], listed: &[Value], view: View) -> String {
    let mut table = Table::new().words("VOLUME").texts("INSTANCE").numbers("SIZE").words("STATE");
    for (orphan, listed) in orphans.iter().zip(listed) {
        let state = match listed["removed"] == true {
            true => "removed",
            false if orphan.volume.attached.is_empty() => "unused",
            false => "attached",
        };
        let volume = &orphan.volume;
        table.row([volume.name.to_string(), orphan.instance.clone(), size(volume.size_bytes), state.to_owned()]);
    }
    table.render(view.width)
}
