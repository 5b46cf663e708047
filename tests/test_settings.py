"""Arguments and environment: whatever is unusable is said at once, and never shows the key."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import aiohttp
import pytest

from braze_sends import BrazeSendsError, ConfigurationError, SendsClient, new_send_id
from braze_sends.settings import INSTANCES, ApiKey, Settings, checked_base_url
from braze_sends.transport import DEFAULT_TOTAL, checked_timeout
from tests.world import KEY

URL = "https://rest.iad-01.braze.com"


def settings(environ: dict[str, str] | None = None, **options: Any) -> Settings:
    """Settings of a client that was given a key and a URL, unless told otherwise."""
    defaults: dict[str, Any] = {
        "api_key": KEY,
        "base_url": URL,
        "workspace": None,
        "max_retries": 2,
        "max_rate_limit_wait": 30.0,
        "daily_limit": None,
        "send_id_factory": None,
    }
    return Settings.of({} if environ is None else environ, **(defaults | options))


# --- key and environment -------------------------------------------------------------------------


def test_the_environment_gives_what_no_argument_does() -> None:
    """Key and URL come from the environment where they are not passed."""
    environ = {"BRAZE_API_KEY": KEY, "BRAZE_BASE_URL": "EU-02"}
    told = settings(environ, api_key=None, base_url=None)
    assert f"Bearer {KEY}" == told.api_key.authorization()
    assert "https://rest.fra-02.braze.eu" == told.base_url


def test_arguments_go_before_the_environment() -> None:
    """A key and a URL that are passed win over those of the environment."""
    told = settings({"BRAZE_API_KEY": "another-key", "BRAZE_BASE_URL": "EU-02"})
    assert f"Bearer {KEY}" == told.api_key.authorization()
    assert URL == told.base_url


def test_an_empty_key_that_is_passed_does_not_fall_back() -> None:
    """An argument that is there but empty is a mistake, not a wish for the environment."""
    with pytest.raises(ConfigurationError, match="no API key"):
        settings({"BRAZE_API_KEY": KEY}, api_key="")


def test_without_anything_the_first_complaint_is_of_the_key() -> None:
    """Nothing set at all: the message names the argument, the variable and the permission."""
    with pytest.raises(ConfigurationError, match=r"api_key=.*BRAZE_API_KEY.*sends\.id\.create"):
        SendsClient()


def test_without_a_url_the_known_instances_are_listed() -> None:
    """No base URL: the message names the argument, the variable and the instances."""
    with pytest.raises(
        ConfigurationError, match=r"BRAZE_BASE_URL, or pass base_url .*US-01.*KR-01"
    ):
        SendsClient(KEY)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "no API key"),
        ("  \t", "no API key"),
        (f'"{KEY}"', "wrapped in quotes"),
        (f"'{KEY}'", "wrapped in quotes"),
        (f'{KEY}"', "wrapped in quotes"),
        (f"'{KEY}", "wrapped in quotes"),
        (f"{KEY}\n", "line break"),
        (f"{KEY}\r\nX-Evil: 1", "control"),
        (f"{KEY}\x00", "control"),
        (f"{KEY}\x7f", "control"),
        (f"{KEY}é", "non-ASCII"),
        (f"\ufeff{KEY}", "non-ASCII"),
        (f"{KEY}\ud800", "non-ASCII"),
        (f"Bearer {KEY}", "without 'Bearer'"),
        (f" {KEY}", "spaces"),
        (f"{KEY} ", "spaces"),
        (KEY.encode(), "must be a string, not bytes"),
        (7, "must be a string, not int"),
        ([KEY], "must be a string, not list"),
    ],
)
def test_a_bad_key_is_refused_without_being_shown(key: Any, message: str) -> None:
    """The message says what is wrong with the key, and holds no part of it."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        SendsClient(key, base_url=URL)
    assert KEY not in f"{caught.value!r} {vars(caught.value)}"
    assert caught.value.__context__ is None


def test_a_key_shows_itself_to_nobody() -> None:
    """No ``repr``, ``str``, digest, pickle or copy of it has the key."""
    key = ApiKey(KEY)
    assert "ApiKey(***)" == repr(key) == str(key) == f"{key}"
    assert KEY not in key.digest()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="not to be pickled"):
            pickle.dumps(key, protocol)
    with pytest.raises(TypeError, match="not to be pickled"):
        copy.deepcopy(key)


def test_a_digest_names_a_key() -> None:
    """The same key has the same digest, another key another."""
    assert ApiKey(KEY).digest() == ApiKey(KEY).digest()
    assert ApiKey(KEY).digest() != ApiKey(KEY + "x").digest()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"Invalid API key: {KEY}", "Invalid API key: ***"),
        (f"{KEY}{KEY.upper()} {KEY.title()}", "****** ***"),
        ("nothing here", "nothing here"),
        ("", ""),
    ],
)
def test_scrub_takes_the_key_out_of_a_text(text: str, clean: str) -> None:
    """Each copy of the key is replaced, in upper and lower case."""
    assert clean == ApiKey(KEY).scrub(text)


@pytest.mark.parametrize(
    ("key", "text", "clean"),
    [
        ("k", "not known", "not known"),
        ("k", "Invalid API key: k", "Invalid API key: ***"),
        ("k", '{"Authorization":"Bearer K"} id-k_k', '{"Authorization":"Bearer ***"} id-***_***'),
        ("-k-", "a-k-b -k-", "a-k-b ***"),
        ("short", "shorter, SHORT", "shorter, ***"),
        ("longer", "xlongerx", "x***x"),
    ],
)
def test_scrub_takes_a_short_key_out_where_it_stands_by_itself(
    key: str, text: str, clean: str
) -> None:
    """A key of a letter or two is echoed to nobody, and leaves the words of a message whole."""
    assert clean == ApiKey(key).scrub(text)


def test_scrub_takes_a_key_for_text_and_not_for_a_pattern() -> None:
    """Characters that mean something to regular expressions mean nothing here."""
    assert "abc ***" == ApiKey("a.c").scrub("abc a.c")


# --- base URL ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instance", "url"),
    [
        ("US-01", "https://rest.iad-01.braze.com"),
        ("US-02", "https://rest.iad-02.braze.com"),
        ("US-03", "https://rest.iad-03.braze.com"),
        ("US-04", "https://rest.iad-04.braze.com"),
        ("US-05", "https://rest.iad-05.braze.com"),
        ("US-06", "https://rest.iad-06.braze.com"),
        ("US-07", "https://rest.iad-07.braze.com"),
        ("US-08", "https://rest.iad-08.braze.com"),
        ("US-10", "https://rest.us-10.braze.com"),
        ("EU-01", "https://rest.fra-01.braze.eu"),
        ("EU-02", "https://rest.fra-02.braze.eu"),
        ("AU-01", "https://rest.au-01.braze.com"),
        ("ID-01", "https://rest.id-01.braze.com"),
        ("JP-01", "https://rest.jp-01.braze.com"),
        ("KR-01", "https://rest.kr-01.braze.com"),
    ],
)
def test_an_instance_stands_for_its_url(instance: str, url: str) -> None:
    """Each instance name gives its REST endpoint, in any case and with blanks around it."""
    assert url == INSTANCES[instance]
    assert url == checked_base_url(instance)
    assert url == checked_base_url(f" {instance.lower()} ")


def test_there_are_fifteen_instances() -> None:
    """The table above is all of them."""
    assert 15 == len(INSTANCES)


@pytest.mark.parametrize(
    "host", ["rest.iad-01.braze.com", "rest.fra-99.braze.eu", "REST.US-10.braze.com"]
)
def test_the_bare_name_of_a_rest_host_stands_for_its_https_url(host: str) -> None:
    """As Braze's dashboard shows it, known or new, in any case and with a slash behind it."""
    assert f"https://{host.lower()}" == checked_base_url(host) == checked_base_url(f"{host}/")


@pytest.mark.parametrize(
    "name", ["US-09", "US-99", "dashboard-01.braze.com", "rest.braze.example", "localhost:8080"]
)
def test_an_unknown_instance_is_answered_with_the_known(name: str) -> None:
    """What is neither a known instance nor a URL is refused, with all that could be meant."""
    with pytest.raises(ConfigurationError, match="unknown instance") as caught:
        checked_base_url(name)
    assert [] == [known for known in INSTANCES if known not in str(caught.value)]
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        (URL, URL),
        (f"{URL}/", URL),
        (f"{URL}//", URL),
        (f"  {URL}\n", URL),
        ("https://rest.new-01.braze.com", "https://rest.new-01.braze.com"),
        ("https://proxy.example/braze/", "https://proxy.example/braze"),
        ("https://proxy.example:8443", "https://proxy.example:8443"),
        ("https://[2001:db8::1]:8443/", "https://[2001:db8::1]:8443"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.5.5.5", "http://127.5.5.5"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://LOCALHOST", "http://LOCALHOST"),
    ],
)
def test_urls_that_the_key_may_travel_to(url: str, checked: str) -> None:
    """Any https URL, and http on loopback, without the slash at its end."""
    assert checked == checked_base_url(url)


@pytest.mark.parametrize(
    "host",
    [
        "rest.iad-01.braze.com",
        "10.0.0.1",
        "0.0.0.0",  # noqa: S104  # refused, not bound
        "128.0.0.1",
        "[::]",
        "[2001:db8::1]",
        "localhost.example.com",
        "127.0.0.1.example.com",
        "localhost.",
        "127.1",
    ],
)
def test_plain_http_is_for_loopback_alone(host: str) -> None:
    """The key does not travel unencrypted to anything but this machine."""
    with pytest.raises(ConfigurationError, match="base_url must be https"):
        checked_base_url(f"http://{host}")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://braze-emulator:8080", "braze-emulator"),
        ("http://BRAZE-emulator", "Braze-Emulator"),
        ("http://braze_emulator.test", "braze_emulator.test"),
        ("http://10.0.0.1:8080", "10.0.0.1"),
        ("http://[fd00::2]:8080", "fd00::2"),
        ("http://127.0.0.1", "braze-emulator"),
        (URL, "braze-emulator"),
    ],
)
def test_one_more_host_can_be_named_for_plain_http(url: str, name: str) -> None:
    """The host that is named may be asked over http; https and loopback stay as they are."""
    assert url == checked_base_url(url, name)


@pytest.mark.parametrize(
    "host", ["other", "braze-emulator.example.com", "x.braze-emulator", "braze-emulator."]
)
def test_naming_a_host_allows_no_other(host: str) -> None:
    """Only that very host is allowed, and the message tells how one is named."""
    with pytest.raises(ConfigurationError, match=r"https.*BRAZE_SENDS_ALLOW_HTTP_HOST"):
        checked_base_url(f"http://{host}:8080", "braze-emulator")


@pytest.mark.parametrize(
    "name",
    ["", " ", "*", "*.example.com", "http://host", "host:80", "host/", "a b", "a,b", "é", 7, True],
)
def test_no_blanket_permission_for_plain_http(name: Any) -> None:
    """Whatever is no bare name of one host is refused, even if the URL does not need it."""
    with pytest.raises(ConfigurationError, match=r"allow_http_host .* must be the bare name"):
        checked_base_url(URL, name)


@pytest.mark.parametrize("name", ["rest.iad-01.braze.com", "REST.fra-02.braze.eu.", "braze.com"])
def test_brazes_own_hosts_are_never_asked_over_plain_http(name: str) -> None:
    """A real key goes to those hosts, so naming one is a mistake."""
    with pytest.raises(ConfigurationError, match="must not name a host of Braze"):
        checked_base_url(f"http://{name}", name)


def test_the_environment_names_the_host_for_plain_http() -> None:
    """The variable counts where nothing is passed, an empty one for none."""
    environ = {"BRAZE_SENDS_ALLOW_HTTP_HOST": " emulator "}
    url = "http://emulator:8080"
    assert url == settings(environ, base_url=url).base_url
    assert url == settings({}, base_url=url, allow_http_host="emulator").base_url
    assert url == SendsClient(KEY, base_url=url, allow_http_host="emulator").base_url
    for refused in ({"BRAZE_SENDS_ALLOW_HTTP_HOST": ""}, {}):
        with pytest.raises(ConfigurationError, match="base_url must be https"):
            settings(refused, base_url=url)
    with pytest.raises(ConfigurationError, match="base_url must be https"):
        settings(environ, base_url=url, allow_http_host="another")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://user:secret@rest.iad-01.braze.com", "user name or password"),
        ("https://user@rest.iad-01.braze.com", "user name or password"),
        ("https://@rest.iad-01.braze.com", "user name or password"),
        ("http://127.0.0.1@rest.iad-01.braze.com", "user name or password"),
        (f"{URL}?a=1", "query or fragment"),
        (f"{URL}/?", "query or fragment"),
        (f"{URL}#a", "query or fragment"),
        (f"{URL}/#", "query or fragment"),
        ("https://rest.iad-01.braze.com:99999", "not a URL"),
        ("https://rest.iad-01.braze.com:-1", "not a URL"),
        ("https://rest.iad-01.braze.com:http", "not a URL"),
        ("https://[::1", "not a URL"),
        ("ftp://rest.iad-01.braze.com", "must be an https URL"),
        ("https://", "must be an https URL"),
        ("https:///path", "must be an https URL"),
        ("https://:443", "must be an https URL"),
        ("https://rest.iad 01.braze.com", "must be an https URL"),
        ("https://rest.iad-01\x00.braze.com", "must be an https URL"),
        ("https://rest.iad-01\n.braze.com", "must be an https URL"),
        ("", "no base URL"),
        ("  ", "no base URL"),
        (7, "must be a string, not int"),
        (b"US-01", "must be a string, not bytes"),
    ],
)
def test_urls_that_are_refused(url: Any, message: str) -> None:
    """What cannot be a REST endpoint, or would lose parts of what was meant, is refused."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        checked_base_url(url)
    assert "secret" not in str(caught.value)


# --- workspace -----------------------------------------------------------------------------------


def test_a_base_url_with_the_path_of_the_endpoint_is_refused() -> None:
    """It would be asked for twice, which Braze answers with 404."""
    with pytest.raises(ConfigurationError, match="endpoint's path; leave out /sends/id/create"):
        checked_base_url("https://rest.iad-01.braze.com/sends/id/create/")


def test_the_default_workspace_is_made_of_host_and_digest() -> None:
    """The quota's name tells keys and instances apart, and holds no key."""
    names = {
        settings().workspace,
        settings(api_key=KEY + "x").workspace,
        settings(base_url="EU-01").workspace,
    }
    assert 3 == len(names)
    assert f"rest.iad-01.braze.com:{ApiKey(KEY).digest()}" == settings().workspace
    assert KEY not in "".join(names)


def test_a_trailing_slash_does_not_make_another_workspace() -> None:
    """One endpoint has one quota, however it was written."""
    assert settings().workspace == settings(base_url=f"{URL}/").workspace
    assert settings().workspace == settings(base_url="us-01").workspace


def test_a_workspace_can_be_named() -> None:
    """A name that is passed is used as it is."""
    assert "news, Köln" == settings(workspace="news, Köln").workspace


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("workspace", ""),
        ("workspace", "  "),
        ("workspace", "a\nb"),
        ("workspace", 7),
        ("workspace", b"news"),
        ("max_retries", -1),
        ("max_retries", 1.0),
        ("max_retries", "2"),
        ("max_retries", True),
        ("max_retries", None),
        ("max_rate_limit_wait", -0.1),
        ("max_rate_limit_wait", "30"),
        ("max_rate_limit_wait", True),
        ("max_rate_limit_wait", float("nan")),
        ("max_rate_limit_wait", float("inf")),
        ("daily_limit", -1),
        ("daily_limit", 99.5),
        ("daily_limit", "100"),
        ("daily_limit", False),
        ("send_id_factory", "story"),
        ("send_id_factory", 7),
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", "10"),
        ("timeout", None),
        ("timeout", True),
        ("timeout", 10**400),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("timeout", aiohttp.ClientTimeout(total=0)),
        ("timeout", aiohttp.ClientTimeout(total=-1)),
        ("timeout", aiohttp.ClientTimeout(total=float("inf"))),
        ("session", "session"),
        ("session", 7),
        ("session", aiohttp.ClientSession),
        ("store", 7),
        ("store", "memory://host"),
        ("store", "oracle://host"),
        ("store", "memory"),
    ],
)
def test_an_unusable_option_is_refused_by_name(option: str, value: object) -> None:
    """Each option has its type and bounds; the message names the one that is wrong."""
    options: dict[str, Any] = {option: value}
    with pytest.raises(ConfigurationError, match=rf"\b{option}\b"):
        SendsClient(KEY, base_url=URL, **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_retries", 0),
        ("max_rate_limit_wait", 0),
        ("max_rate_limit_wait", None),
        ("daily_limit", 0),
        ("daily_limit", None),
        ("send_id_factory", None),
        ("send_id_factory", new_send_id),
        ("workspace", "news"),
    ],
)
def test_an_option_at_its_bound_is_accepted(option: str, value: object) -> None:
    """0 and ``None`` are values, not mistakes."""
    options: dict[str, Any] = {option: value}
    assert value == getattr(settings(**options), option)


def test_a_timeout_is_seconds_or_aiohttps_own() -> None:
    """A number is the total of an attempt; a ClientTimeout is kept, and always has a total."""
    assert aiohttp.ClientTimeout(total=2.5) == checked_timeout(2.5)
    own = aiohttp.ClientTimeout(total=3, sock_connect=1)
    assert own == checked_timeout(own)
    assert aiohttp.ClientTimeout(total=DEFAULT_TOTAL, sock_read=1) == checked_timeout(
        aiohttp.ClientTimeout(total=None, sock_read=1)
    )


def test_a_configuration_error_is_also_a_value_error() -> None:
    """Callers that know nothing of this package can catch a ValueError."""
    with pytest.raises(ValueError, match="no API key") as caught:
        settings(api_key="")
    assert isinstance(caught.value, BrazeSendsError)
