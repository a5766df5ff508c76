"""The dashboard of the activity, from Loki: what happened, who did it, to what, and what went wrong.

Works with the sink `loki`, which gives streams a label `contract`, and with the IONOS Logging Service, which does not. Queries
read the streams of the chosen contracts and those without such a label; then the entry's own field decides.
Every query names the fields it needs. So there are few labels and series, and items of lists (`resources[0]`) can be read.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, QueryVariable, Row, TextBoxVariable
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel, VariableOption, VariableRefresh, VariableSort

from grafana.parts import Query, board, curves, lines, number, ranking, rows, source

STREAMS = '{tag_name=~"$tag", contract=~"$contract|"}'

# Label -> where it is in an entry. `contract` would clash with the stream's label.
FIELDS = {
    "at": "meta.time",
    "type": "event.type",
    "status": "event.status",
    "user": "principal.identity.username",
    "contract_number": "principal.identity.contractNumber",
    "service": "principal.sourceService",
    "address": "principal.sourceIP",
    "method": "event.param.action",
    "uri": "event.param.uri",
    "resource": "event.resources[0].type",
    "resource_id": "event.resources[0].id",
    "change": "event.resources[0].action[0]",
    "error_code": "event.param.errorCode",
    "error": "event.param.error.messages[0].message",
}

# The typed text is matched literally, not as a regular expression: Grafana escapes it, and inside backquotes the escapes reach
# Loki. No user name contains a backquote.
IS_CHOSEN_USER = "| user=~`(?i).*${user:regex}.*`"
IS_ERROR = 'type=~"Error|RequestFailed"'
ERROR_TEXT = '|~ "\\"type\\":\\"(Error|RequestFailed)\\""'  # filters the raw line: cheaper than parsing all lines
IS_ECHO_TEXT = '!= "\\"type\\":\\"RequestStatusUpdate\\""'


# This concerns counts only: in lists of lines, Loki merges exact repeats.  Source: docs/facts.md, "Loki push API".
COUNTED = "An entry that was sent again after a lost answer may count twice; lists of entries show it once."


def extracted(*fields: str) -> str:
    """The stage that extracts these fields, and those that the variables filter by, as labels."""
    wanted = [name for name in FIELDS if name in {*fields, "contract_number", "user"}]
    return "| json " + ", ".join(f'{name}="{FIELDS[name]}"' for name in wanted)


def entries(*fields: str, where: str = "", text: str = "") -> str:
    """The chosen entries with these fields. `text` filters lines, `where` fields. Lines that are not JSON are left out."""
    stages = [
        STREAMS,
        text,
        extracted(*fields),
        '| __error__=""',
        '| contract_number=~"$contract"',
        IS_CHOSEN_USER,
        f"| {where}" if where else "",
    ]
    return " ".join(stage for stage in stages if stage)


def count(chosen: str, by: str = "", span: str = "$__auto") -> str:
    grouping = f"sum by ({by}) " if by else "sum"
    return f"{grouping}(count_over_time({chosen} [{span}]))"


def dashboard() -> Dashboard:
    built = (
        board(
            "ionos-activity",
            "IONOS Cloud activity",
            "The Activity Log of the IONOS contracts, as ionos-poller delivers it. Generated: see grafana/ in its source.",
            "loki",
        )
        .with_variable(_label("tag", "tag_name", "Tag", all_value=".+"))
        .with_variable(_label("contract", "contract", "Contract", all_value=".*"))
        .with_variable(
            TextBoxVariable("user")
            .label("User (part of it)")
            .current(VariableOption(text="", value=""))
            .default_value("")
        )
    )
    return (
        _what_went_wrong(_who_did_what(_overview(built)))
        .with_row(Row("Entries"))
        .with_panel(_latest_entries())
        .with_panel(lines("The same as the API gave them", entries("type")))
    )


def _latest_entries() -> Builder[Panel]:
    shown = entries("at", "user", "type", "status", "change", "method", "resource", "resource_id", "address")
    columns = {
        "at": "Time",
        "user": "User",
        "contract_number": "Contract",
        "type": "Entry",
        "status": "Status",
        "change": "Did",
        "method": "Method",
        "resource": "To",
        "resource_id": "Id",
        "address": "From",
    }
    return rows(
        "Latest entries", shown, columns, description="The latest 200, status updates too, by the entry's own time."
    )


def _label(name: str, label: str, title: str, *, all_value: str) -> QueryVariable:
    """A choice among the values of a stream label; other values may be typed."""
    return (
        QueryVariable(name)
        .label(title)
        .datasource(source("loki"))
        .query({"label": label, "refId": f"{name}Values", "stream": "", "type": 1})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(all_value)
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _overview(built: Dashboard) -> Dashboard:
    whole = "$__range"
    known = entries("user", where='user!=""')
    users = f"count({count(known, 'user', whole)})"
    deletions = entries("method", "type", where='method="DELETE" | type="RequestAccepted"')
    return (
        built.with_panel(number("loki", "Entries", Query(count(entries(), span=whole)), width=6, description=COUNTED))
        .with_panel(number("loki", "Users", Query(users), width=6))
        .with_panel(
            number(
                "loki",
                "Deletions accepted",
                Query(count(deletions, span=whole)),
                warning=1,
                width=6,
                description=COUNTED,
            )
        )
        .with_panel(
            number(
                "loki",
                "Errors",
                Query(count(entries("type", where=IS_ERROR, text=ERROR_TEXT), span=whole)),
                critical=1,
                width=6,
                description=COUNTED,
            )
        )
        .with_panel(
            curves(
                "loki",
                "By type",
                Query(count(entries("type"), "type"), "{{type}}"),
                description=COUNTED,
                is_stacked=True,
            )
        )
        .with_panel(
            curves(
                "loki",
                "By service",
                Query(count(entries("service"), "service"), "{{service}}"),
                description=COUNTED,
                is_stacked=True,
            )
        )
        .with_panel(
            curves(
                "loki",
                "By contract",
                Query(count(entries(), "contract_number"), "{{contract_number}}"),
                description=COUNTED,
                is_stacked=True,
            )
        )
    )


def _who_did_what(built: Dashboard) -> Dashboard:
    acted = entries("user", where='user!=""', text=IS_ECHO_TEXT)
    changed = entries("resource", where='resource!=""', text=IS_ECHO_TEXT)
    called = entries("method", "service", where='method!=""', text=IS_ECHO_TEXT)
    shown = entries(
        *("at", "user", "change", "resource", "resource_id", "type", "status", "address", "service"),
        where='resource!=""',
        text=IS_ECHO_TEXT,
    )
    columns = {
        "at": "Time",
        "user": "User",
        "contract_number": "Contract",
        "change": "Did",
        "resource": "To",
        "resource_id": "Id",
        "type": "Entry",
        "status": "Status",
        "address": "From",
        "service": "Through",
    }
    return (
        built.with_row(Row("Who did what"))
        .with_panel(
            ranking(
                "Top users", Query(f"topk(10, {count(acted, 'user', '$__range')})", "{{user}}"), description=COUNTED
            )
        )
        .with_panel(
            ranking(
                "Top resources",
                Query(f"topk(10, {count(changed, 'resource', '$__range')})", "{{resource}}"),
                description=COUNTED,
            )
        )
        .with_panel(
            ranking(
                "Top methods",
                Query(f"topk(10, {count(called, 'method, service', '$__range')})", "{{method}} {{service}}"),
                description=COUNTED,
            )
        )
        .with_panel(
            rows(
                "Who did what to which resource",
                shown,
                columns,
                description="The latest 200, without status updates. The time is the entry's own, the resource its first.",
            )
        )
    )


def _what_went_wrong(built: Dashboard) -> Dashboard:
    failed = entries("type", where=IS_ERROR, text=ERROR_TEXT)
    told = entries("type", "error", where=f'{IS_ERROR} | error!=""', text=ERROR_TEXT)
    shown = entries(
        *("at", "user", "type", "method", "uri", "error_code", "error", "resource"), where=IS_ERROR, text=ERROR_TEXT
    )
    columns = {
        "at": "Time",
        "user": "User",
        "contract_number": "Contract",
        "type": "Entry",
        "method": "Method",
        "uri": "URI",
        "resource": "Resource",
        "error_code": "Code",
        "error": "Message",
    }
    return (
        built.with_row(Row("What went wrong"))
        .with_panel(
            curves(
                "loki",
                "Errors",
                Query(count(failed, "type, contract_number"), "{{type}} {{contract_number}}"),
                description=COUNTED,
                is_stacked=True,
                width=12,
            )
        )
        .with_panel(
            ranking(
                "Top messages",
                Query(f"topk(10, {count(told, 'error', '$__range')})", "{{error}}"),
                width=12,
                description=COUNTED,
            )
        )
        .with_panel(rows("Errors with their messages", shown, columns, description="The latest 200."))
    )
