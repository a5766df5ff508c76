"""`setup`: from a token to a working configuration for the Logging Service."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

import click

from poller.cli import setup_service as service
from poller.cli import suggestions
from poller.cli.acting import log_done
from poller.cli.check import run_checks, show
from poller.cli.messages import note
from poller.cli.options import DURATION, GlobalOptionsCommand, Settings
from poller.cli.setup_kafka import KafkaWish, set_up_kafka
from poller.cli.setup_pipeline import Wish, carry_out, check_wish, connect, plan_of
from poller.cli.setup_steps import ask, confirm, in_turn, is_terminal, load_existing, secure_url, tell_steps
from poller.cli.stopping import until_stopped
from poller.config import Config, find_config
from poller.config.load import LOCAL_CONFIG, SYSTEM_CONFIG
from poller.core.errors import EXIT_OK
from poller.ionos.event_streams import region_url as kafka_url
from poller.ionos.pipelines import REGIONS, region_url

_SINK = "logging"
_TAG = "activityLog"


@click.command("setup", cls=GlobalOptionsCommand)
@click.option("--region", type=click.Choice(REGIONS), help="Region of the pipeline.")
@click.option(
    "--pipeline", metavar="NAME", help="Its name (at most 20 characters) or id. Created if it does not exist."
)
@click.option("--tag", metavar="TAG", help="Tag of its log source: 3 to 20 letters and digits. Default: activityLog.")
@click.option("--sink", default=_SINK, show_default=True, metavar="NAME", help="Name of the sink in the configuration.")
@click.option(
    "--retention-days",
    type=click.Choice(["0", "7", "14", "30"]),
    default="30",
    show_default=True,
    help="How long a log source created here keeps its entries; 0: without limit. IONOS's Grafana shows 30 days only.",
)
@click.option(
    "--account",
    metavar="NAME",
    shell_complete=suggestions.accounts,
    help="Account whose token is used, if there are several.",
)
@click.option(
    "--service", "is_service", is_flag=True, help="Also install and start it as a service of systemd. Needs root."
)
@click.option("--rotate-key", is_flag=True, help="Create a new key. The old one stops working.")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.option("--timeout", type=DURATION, default="10m", show_default=True, help="How long to wait for a new pipeline.")
@click.option(
    "--api-url",
    envvar="IONOS_LOGGING_API_URL",
    show_envvar=True,
    metavar="URL",
    help="Address of the Logging Service's API, instead of the region's.",
)
@click.option(
    "--kafka", metavar="CLUSTER", help="Fetch the certificates of an Event Streams cluster, and add a kafka sink."
)
@click.option("--kafka-user", metavar="NAME", help="User of the cluster, if it has several.")
@click.option("--topic", default="activity", show_default=True, metavar="NAME", help="With --kafka: the topic.")
@click.pass_obj
def command(
    settings: Settings,
    region: str | None,
    pipeline: str | None,
    tag: str | None,
    sink: str,
    retention_days: str,
    account: str | None,
    is_service: bool,
    rotate_key: bool,
    dry_run: bool,
    yes: bool,
    timeout: float,
    api_url: str | None,
    kafka: str | None,
    kafka_user: str | None,
    topic: str,
) -> int:
    """Create or reuse a pipeline of the IONOS Logging Service, store its key (0600), write a configuration, then check it.

    On a terminal it asks for what the options leave open. A second run changes nothing that is right already. Needs the
    extra `setup` and the token of a user who may manage the Logging Service.

    With `--service`, as root, it also stores the token and the keys in /etc/ionos-poller (0600) for systemd's LoadCredential=,
    installs the unit, starts it, and waits for the first entry. If the configuration has sinks, it creates no pipeline.
    Without root it prints the commands.

    \b
    Examples:
      ionos-poller setup
      ionos-poller setup --region de-txl --pipeline audit --tag activityLog --yes
      ionos-poller setup --region de-txl --pipeline audit --dry-run
      ionos-poller setup --region de-txl --kafka my-cluster --topic activity
      sudo --preserve-env=IONOS_API_TOKEN ionos-poller setup --service
    """
    settings.setup_logging()
    if kafka is not None:
        url = secure_url(api_url or kafka_url(region or ask("--region", "Region", "de-txl", REGIONS)))
        name = sink if sink != _SINK else "stream"
        wanted = KafkaWish(kafka, kafka_user, topic, name, account, is_agreed=yes, is_dry_run=dry_run)
        return set_up_kafka(settings, url, wanted)
    config_path = _place(settings, is_service=is_service)
    config = load_existing(config_path, settings)
    if is_service and os.geteuid() != 0:
        return _tell_commands(config, settings.variables)
    if is_service and config.sinks and region is None and pipeline is None:
        return _start_service(config, is_agreed=yes, is_dry_run=dry_run)
    url = secure_url(api_url or region_url(region or ask("--region", "Region", "de-txl", REGIONS)))
    wish = Wish(
        pipeline or ask("--pipeline", "Name of the pipeline", "activity-log"),
        tag or (_TAG if yes or not is_terminal() else ask("--tag", "Tag", _TAG)),
        sink,
        int(retention_days),
        rotate_key,
    )
    check_wish(wish)
    pipelines = connect(url, config, account)
    found = in_turn(lambda _: pipelines.find(wish.pipeline))
    plan = plan_of(wish, config, config_path, found, is_asking=is_terminal() and not yes)
    steps = list(plan.steps(wish))
    tell_steps(steps, is_dry_run=dry_run)
    if dry_run:
        return EXIT_OK
    if steps:
        confirm(yes)
        log_done("setup", "; ".join(steps))
    if is_service:
        service.make_directory()
    carry_out(plan, wish, pipelines, timeout)
    if is_service:
        return _start_service(load_existing(config_path, settings), is_agreed=yes, is_dry_run=False)
    return _check(settings, config_path, is_changed=bool(steps))


def _place(settings: Settings, *, is_service: bool) -> Path:
    """The path of the configuration. A service has the system's; if that does not exist, it is made from a local one."""
    found = find_config(settings.config, settings.variables)
    if not is_service:
        return found or LOCAL_CONFIG
    settings.variables = service.service_environment(settings.variables)
    return found if found is not None and not os.path.lexists(SYSTEM_CONFIG) else SYSTEM_CONFIG


def _check(settings: Settings, config_path: Path, *, is_changed: bool) -> int:
    """Check the result, and print the next step.  Returns: the exit code."""
    note("all done; checking it:" if is_changed else "nothing to do; checking it:")
    program = ["ionos-poller", *(["--config", str(config_path)] if settings.config else [])]
    settings.config = str(config_path)
    code = until_stopped(lambda stop: show(run_checks(settings, stop)))
    if code == EXIT_OK:
        note(f"ready: `{shlex.join([*program, 'run'])}` begins to collect and deliver")
        note(f"as a service of systemd: `{shlex.join([*program, 'setup', '--service'])}`, as root")
    return code


def _tell_commands(config: Config, environ: Mapping[str, str]) -> int:
    """Print the commands that need root instead of running them."""
    note("a service needs root; these commands make one:")
    for command in service.commands_for_root(config, environ):
        click.echo(command)
    return EXIT_OK


def _start_service(config: Config, *, is_agreed: bool, is_dry_run: bool) -> int:
    found = service.installation(config)
    tell_steps(list(found.steps()), is_dry_run=is_dry_run)
    if is_dry_run:
        return EXIT_OK
    confirm(is_agreed)
    service.install(found)
    return service.await_first_entry()
