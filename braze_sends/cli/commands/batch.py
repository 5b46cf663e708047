"""``braze-sends batch``: a file of rows; a line for each that was decided; over days if need be."""

from __future__ import annotations

from typing import Annotated

import typer

from braze_sends.cli import options


def batch(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="CSV with a header row, or JSON Lines, with campaign_id and send_id; - for "
            "standard input.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Where result lines are appended, and what a rerun goes on from. Without it, or "
            "with -: standard output. A PATH that ends in .csv is CSV; then the lines are in "
            "PATH.jsonl.",
        ),
    ] = None,
    keep_columns: Annotated[
        bool,
        typer.Option("--keep-columns", help="Put the other columns of FILE into the CSV output."),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for quota, over as many days as it takes.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and show its cost; send nothing.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without rows that cannot be used.")
    ] = False,
    encoding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The encoding of FILE, such as cp1252. Without it: UTF-8, what a byte order mark "
            "tells, or else cp1252.",
        ),
    ] = None,
    limit_per_day: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=options.QUOTA,
            help="Never create more in a day through this store.",
        ),
    ] = None,
    headroom: options.Headroom = 0,
    concurrency: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="How many at a time. Above 1, lines come as answers do."
        ),
    ] = 1,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="The longest that an attempt may take.")
    ] = 10.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    base_url: options.BaseUrl = None,
    store: options.Store = None,
    workspace: options.Workspace = None,
    api_key_file: options.KeyFile = None,
    profile: options.Profile = None,
    log_file: options.LogFile = None,
) -> None:
    """Create a send ID for each row of a file.

    Each row that is decided gets a line of JSON. With --output, or a store
    that lasts, the same command run again goes on where it stopped: after a
    crash, when the quota is back, or with rows that got no answer.
    """
    import asyncio
    import os
    from collections import Counter
    from contextlib import ExitStack

    from braze_sends import BrazeSendsError, ConfigurationError, SendsClient
    from braze_sends.cli import common, results
    from braze_sends.cli.batch import Run, read_rows
    from braze_sends.cli.cost import show_cost
    from braze_sends.cli.logs import logging_to
    from braze_sends.cli.progress import Progress
    from braze_sends.cli.summary import Summary
    from braze_sends.journal import Journal

    output = None if output == "-" else output
    with common.reporting(as_json), ExitStack() as stack:
        if file == api_key_file == "-":
            raise ConfigurationError("FILE and --api-key-file cannot both be standard input")
        database = common.file_of(store)
        table, lines = (output if results.is_csv(output) else None), results.journal_of(output)
        written = [os.path.realpath(path) for path in (output, lines) if path]
        if database and os.path.realpath(database) in written:
            raise ConfigurationError("--output and --store cannot both be the same file")
        if log_file is not None:
            others = [*written, *(os.path.realpath(path) for path in (file, database) if path)]
            if os.path.realpath(log_file) in others:
                raise ConfigurationError("--log-file needs a file of its own")
            stack.enter_context(logging_to(log_file))
        if table is not None:
            if os.path.realpath(file) in written:
                raise ConfigurationError("FILE and --output cannot both be the same file")
            results.check(table)
        elif keep_columns:
            raise ConfigurationError("--keep-columns needs CSV, such as --output sends.csv")
        braze = SendsClient(
            common.api_key(api_key_file),
            base_url=base_url,
            store=common.existing(store) if dry_run else store,
            workspace=workspace,
            timeout=timeout,
            daily_limit=limit_per_day,
            max_rate_limit_wait=None if wait else 0.0,
        )
        rows = stack.enter_context(read_rows(file, skip_bad, as_json, encoding, keep_columns))
        journal = stack.enter_context(Journal.open(lines, read_only=dry_run))
        found = Counter(map(journal.status, rows))
        summary = Summary(
            rows=rows.count,
            bad=rows.bad,
            repeated=rows.repeated,
            before=rows.count - found[None] - found["failed"],
            failed_before=found["failed"],
            headroom=headroom,
        )
        if dry_run:
            show_cost(summary, journal.missing(rows), braze, headroom, as_json)
            return
        if journal.torn:
            common.note(f"the last line of {lines} had been cut short, and was removed")
        if common.forgetful(store) and not quiet:
            if limit_per_day is not None:
                common.note("without a store that lasts, --limit-per-day is for this run alone")
            if not journal.lasting:
                advice = "to go on, give --output, or a store that lasts"
                common.note(f"a rerun will begin anew: {advice}")
        done = rows.count - found[None]
        left_to_others = headroom if wait else None
        capped = limit_per_day is not None
        progress = stack.enter_context(Progress(rows.count, done, quiet, left_to_others, capped))
        try:
            asyncio.run(Run(braze, rows, journal, progress, summary, concurrency, headroom).run())
        finally:
            if table is not None:
                try:
                    results.write(table, rows.others(), rows.names)
                except BrazeSendsError as failure:
                    summary.fatal = summary.fatal or failure
    if as_json:
        common.print_json(summary.as_json())
    elif not quiet or summary.exit_code:
        continues = journal.lasting or not common.forgetful(store)
        where = "the output" if table is None else str(lines)
        for line in summary.in_words(continues=continues, journal=where, command=common.command()):
            common.note(line)
    raise typer.Exit(summary.exit_code)
