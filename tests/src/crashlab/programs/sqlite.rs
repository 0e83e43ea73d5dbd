//! SQLite with both kinds of journal: a round is a transaction, durable when COMMIT returns.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::{Program, at_least};
use crate::run::{run, tool};

/// SQLite by the kind of its journal.
pub enum Sqlite {
    /// The old pages in a journal that a commit deletes. `synchronous=EXTRA` syncs the folder after that;
    /// without, SQLite itself does not promise that a commit survives.
    Rollback,
    /// The new pages in a write-ahead log.
    WriteAhead,
}

/// What row n holds.
const BODY: &str = "substr(replace(hex(zeroblob(900)), '00', printf('%d ', n)), 1, 200 + n * 797 % 3000)";

impl Program for Sqlite {
    fn name(&self) -> &'static str {
        match self {
            Sqlite::Rollback => "sqlite-rollback",
            Sqlite::WriteAhead => "sqlite-wal",
        }
    }

    fn work(&self, root: &Path, rounds: u64, durable: &mut dyn FnMut(u64)) -> Result<()> {
        let mut shell = tool("sqlite3")
            .args(["-batch", "-bail"])
            .arg(root.join("db"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("sqlite3")?;
        let mut say = shell.stdin.take().context("stdin")?;
        let mut answers = BufReader::new(shell.stdout.take().context("stdout")?).lines();
        let mut ask = |sql: &str| -> Result<()> {
            writeln!(say, "{sql}; SELECT 'done';")?;
            while answers.next().context("sqlite3 ended")?? != "done" {}
            Ok(())
        };
        ask(match self {
            Sqlite::Rollback => "PRAGMA journal_mode=DELETE; PRAGMA synchronous=EXTRA",
            Sqlite::WriteAhead => {
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=40"
            }
        })?;
        ask(
            "BEGIN; CREATE TABLE rows(n INTEGER PRIMARY KEY, body TEXT); CREATE INDEX bodies ON rows(body); \
             CREATE TABLE total(n INTEGER); INSERT INTO total VALUES(0); COMMIT",
        )?;
        for round in 1..=rounds {
            ask(&format!(
                "BEGIN; INSERT INTO rows SELECT n, {BODY} FROM (SELECT {round} AS n); UPDATE total SET n = {round}; \
                 COMMIT"
            ))?;
            durable(round);
            if round % 50 == 49 {
                ask("VACUUM")?;
            }
        }
        drop(say);
        ensure!(shell.wait()?.success(), "sqlite3 failed");
        Ok(())
    }

    fn check(&self, root: &Path, durable: u64) -> Result<()> {
        let db = root.join("db");
        if durable == 0 && !db.exists() {
            return Ok(());
        }
        let ask = |sql: &str| run(tool("sqlite3").args(["-batch", "-bail"]).arg(&db).arg(sql));
        let verdict = ask("PRAGMA integrity_check")?;
        ensure!(verdict.trim() == "ok", "integrity_check: {verdict}");
        if durable == 0 && ask("SELECT count(*) FROM sqlite_master")?.trim() == "0" {
            return Ok(());
        }
        let answer = ask(&format!(
            "SELECT count(*), ifnull(max(n), 0), ifnull(sum(body <> {BODY}), 0), (SELECT n FROM total) FROM rows"
        ))?;
        let numbers: Vec<u64> = answer.trim().split('|').map(str::parse).collect::<Result<_, _>>()?;
        let &[count, newest, wrong, total] = &numbers[..] else { anyhow::bail!("{answer}") };
        ensure!(count == newest && total == newest && wrong == 0, "count, newest, wrong, total: {answer}");
        at_least(newest, durable)
    }
}
