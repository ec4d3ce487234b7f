"""The arguments of the command line, with help and complaints in the reader's language."""

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .errors import Language, Text, UnusableValue

_DISTRIBUTION = "mqtt-request-reply-bridge"
_USAGE = Text("用法：", "usage: ")
# What argparse complains of, as Python 3.11 to 3.14 put it.
_COMPLAINTS = {
    r"the following arguments are required: (.*)": "缺少参数：{}",
    r"unrecognized arguments: (.*)": "无法识别的参数：{}",
    r"argument (.*): invalid choice: (.*) \(choose from (.*)\)": "参数 {}：没有 {}，可选：{}",
    r"argument (.*): expected one argument": "参数 {}：缺少值",
    r"argument (.*): invalid int value: (.*)": "参数 {}：{} 不是整数",
    r"argument (.*): ignored explicit argument (.*)": "参数 {}：不接受值 {}",
    r"ambiguous option: (.*) could match (.*)": "选项 {} 不明确，可能是：{}",
    r"argument (.*?): (.*)": "参数 {}：{}",
}


def parse(arguments: list[str] | None, language: Language) -> argparse.Namespace:
    """The arguments; `command` is the command's name. Ends the program after help or an error."""
    # The console script bears the name of the distribution.
    script = Path(sys.argv[0]).stem
    prog = script if script == _DISTRIBUTION else "run.py"
    about = Text(
        "MQTT 请求/应答桥接服务，连接插件与 ESP32 开发板。"
        "不带命令时执行 serve，配置来自环境变量和 .env。",
        "An MQTT request/reply bridge between plugins and ESP32 boards. "
        "Without a command it runs serve. Settings come from the environment and .env.",
    )
    parser = _Parser(language, about.in_(language), prog=prog)
    parser.option("--version", "显示版本号", "show the version", action="version",
                  version=__version__)  # fmt: skip
    parser.set_defaults(command="serve", extra="server", prog=prog)
    title = Text("命令", "command").in_(language)
    commands = parser.add_subparsers(title=title, metavar=title, parser_class=_Parser)

    def command(name: str, zh: str, en: str, description: Text | None = None) -> _Parser:
        """A command with its line of help, and what `--help` says of it if that is more."""
        words = Text(zh, en)
        added: _Parser = commands.add_parser(
            name,
            help=words.in_(language),
            language=language,
            description=(description or words).in_(language),
        )
        added.set_defaults(command=name)
        return added

    command("serve", "经 MQTT 和 HTTP 提供服务（默认）", "serve over MQTT and HTTP (the default)")
    _add_demo(command)
    command(
        "doctor",
        "检查配置、数据库、MQTT 服务器和端口，并说明如何修正",
        "check settings, database, broker and port, and say how to fix them",
    )
    command(
        "init-db",
        "在数据库中创建 DEDUP_STORE=mysql 需要的表",
        "create the table that DEDUP_STORE=mysql needs",
    ).option(
        "--print",
        "只打印 SQL，交给管理员执行",
        "only print the SQL, for a database administrator",
        action="store_true",
    )
    _add_call(command)
    _add_mcp(command)
    return parser.parse_args(arguments)


class _Parser(argparse.ArgumentParser):
    def __init__(self, language: Language, description: str, **options: Any) -> None:
        self._language = language

        class Formatter(argparse.HelpFormatter):
            def add_usage(
                self,
                usage: str | None,
                actions: Iterable[argparse.Action],
                groups: Iterable[Any],
                prefix: str | None = None,
            ) -> None:
                prefix = _USAGE.in_(language) if prefix is None else prefix
                super().add_usage(usage, actions, groups, prefix)

        super().__init__(
            description=description, formatter_class=Formatter, add_help=False, **options
        )
        self._positional = self.add_argument_group(Text("参数", "arguments").in_(language))
        self._options = self.add_argument_group(Text("选项", "options").in_(language))
        self.option("-h", "显示此帮助", "show this help", "--help", action="help")

    def positional(self, name: str, zh: str, en: str, **options: Any) -> None:
        self._positional.add_argument(name, help=self._in_language(zh, en), **options)

    def option(self, name: str, zh: str, en: str, *names: str, **options: Any) -> None:
        self._options.add_argument(name, *names, help=self._in_language(zh, en), **options)

    def reads(self, read: Callable[[str], Any]) -> Callable[[str], Any]:
        """A `type` that says what is wrong with a value in the reader's language."""

        def checked(text: str) -> Any:
            try:
                return read(text)
            except UnusableValue as unusable:
                raise argparse.ArgumentTypeError(unusable.text.in_(self._language)) from None

        return checked

    def error(self, message: str) -> NoReturn:
        if self._language == "zh":
            message = _in_chinese(message)
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: {message}\n")

    def _in_language(self, zh: str, en: str) -> str:
        return Text(zh, en).in_(self._language)


AddCommand = Callable[..., _Parser]


def _in_chinese(message: str) -> str:
    for pattern, words in _COMPLAINTS.items():
        match = re.fullmatch(pattern, message, re.DOTALL)
        if match:
            return words.format(*match.groups())
    return message


def _add_demo(command: AddCommand) -> None:
    demo = command(
        "demo",
        "试用：内置 MQTT 服务器、数据库和模拟开发板，不留下任何文件",
        "try it with an embedded broker and database and simulated boards",
    )
    demo.set_defaults(extra="demo")
    port = demo.reads(_port)
    demo.option(
        "--http-port",
        "HTTP 端口，默认 9001，被占用时用空闲端口",
        "the HTTP port (default: 9001, or a free port if it is taken)",
        type=port,
        metavar="PORT",
    )
    demo.option(
        "--mqtt-port",
        "MQTT 端口，默认 1883，被占用时用空闲端口",
        "the MQTT port (default: 1883, or a free port if it is taken)",
        type=port,
        metavar="PORT",
    )
    demo.option(
        "--language",
        "语言，默认按 LANGUAGE 和系统语言",
        "the language (default: LANGUAGE, else the locale)",
        choices=("zh", "en"),
    )


def _add_call(command: AddCommand) -> None:
    call = command(
        "call",
        "经 MQTT 向运行中的桥接服务发送请求，并打印回复",
        "send a request to a running bridge over MQTT, and print the reply",
        Text(
            "经 MQTT 向运行中的桥接服务发送请求，以 JSON 打印回复。"
            "退出状态：code 为 200 时为 0，其他 code 为 1，没有回复为 2。",
            "Send a request to a running bridge over MQTT and print the reply as JSON. "
            "Exit status: 0 for code 200, 1 for another code, 2 if no reply came.",
        ),
    )
    call.positional(
        "operation",
        "如 sensor-data；operations 列出全部",
        "for example sensor-data; `operations` lists them all",
    )
    call.positional(
        "fields",
        "值是合法的 JSON 时按 JSON 发送，否则按文本发送；要把数字作为文本发送，请加两层引号："
        """device_uuid='"1001"'""",
        "a value that is valid JSON is sent as JSON, any other as text; to send a number as text, "
        """quote it twice: device_uuid='"1001"'""",
        nargs="*",
        type=call.reads(_field),
        default=[],
        metavar="field=value",
    )
    call.option(
        "--timeout",
        "等待回复的秒数",
        "seconds to wait for the reply",
        type=call.reads(_seconds),
        metavar="S",
    )
    call.option(
        "--id",
        "请求编号；同一编号的命令只执行一次",
        "the request's id; a command is executed once per id",
    )
    _add_client_level(call)


def _add_mcp(command: AddCommand) -> None:
    mcp = command(
        "mcp",
        "供大语言模型使用的 MCP 服务器（标准输入输出）",
        "serve a language model: an MCP server on standard input and output",
        Text(
            "标准输入输出上的 MCP 服务器，供 Claude Desktop 等自行启动它的客户端使用。"
            "它按环境变量和 .env 中的 MQTT_ 配置，经 MQTT 向运行中的桥接服务发送请求；"
            "模型未指明设备时使用 MCP_DEVICE_UUID。",
            "An MCP server on standard input and output, for clients such as Claude "
            "Desktop that start it themselves. It sends requests to a running bridge over MQTT, "
            "with the MQTT_ settings of the environment and .env. If the model names no device, "
            "it uses MCP_DEVICE_UUID.",
        ),
    )
    _add_client_level(mcp)


def _add_client_level(parser: _Parser) -> None:
    parser.option(
        "--client-level",
        "本程序的 MQTT 用户名，MQTT 服务器的 ACL 要求主题中带有它时填写",
        "your user name at the broker, if the broker's ACL requires it in the topics",
        metavar="USER",
    )


def _port(text: str) -> int:
    port = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= port <= 65535:
        raise UnusableValue("应为 1 到 65535 的整数", "must be a number from 1 to 65535")
    return port


def _field(text: str) -> tuple[str, Any]:
    """`name=value`: the value as JSON where it is JSON, else as text."""
    import orjson

    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UnusableValue(f"{text!r} 不是 名称=值", f"{text!r} is not name=value")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise UnusableValue(
            f"{text!r} 应为大于 0、不超过 86400 的秒数",
            f"{text!r} must be a number of seconds above 0 and up to 86400",
        )
    return seconds
