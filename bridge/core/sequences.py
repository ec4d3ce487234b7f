"""Running a preset's sequence: its steps with their pauses, and what it reports when cut short."""

import asyncio
from dataclasses import dataclass, field

from ..devices.errors import DeviceBusy
from ..devices.models import DeviceProfile, ExecutedStep, SequenceResult
from ..devices.names import device_key
from ..devices.presets import PresetPlan, Step
from ..errors import BridgeError, RequestTimeout, Text
from .attempt import NO_MATCHING_SUBSCRIBERS, REFUSED_FROM, Context
from .context import DRAIN_MARGIN

_DONE = Text(
    "预设「{preset}」已执行，共 {total} 步", "The preset '{preset}' was run ({total} steps)"
)
_CUT_SHORT = Text(
    "预设「{preset}」中断，已发送 {sent}/{total} 步：{reason}",
    "The preset '{preset}' was interrupted after {sent} of {total} steps: {reason}",
)
_DRAINING = Text("桥接服务正在停止", "the bridge is stopping")
_OUT_OF_TIME = Text("超过时限", "the time limit was reached")
_UNREACHABLE = Text("设备没有连接到 MQTT 服务器", "the device is not connected")
_REFUSED = Text("MQTT 服务器拒绝了命令", "the MQTT broker rejected the command")
_UNKNOWN = Text(
    "命令没有得到确认，设备可能已收到",
    "a command was not acknowledged; the device may have received it",
)


class _CutShortError(Exception):
    """The sequence ends here; `reason` is for the reply."""

    def __init__(self, reason: Text) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class _Run:
    """One run of a sequence; `executed` holds the steps that have left."""

    context: Context
    device: DeviceProfile
    plan: PresetPlan
    executed: list[ExecutedStep] = field(default_factory=list)

    async def all_steps(self) -> None:
        """Run all steps; raises _CutShortError, or the first step's BridgeError."""
        last = len(self.plan.steps)
        for number, step in enumerate(self.plan.steps, start=1):
            await self._leave(number, step)
            if number < last:
                await self._pause(step.delay, sum(s.delay for s in self.plan.steps[number:-1]))

    async def _leave(self, number: int, step: Step) -> None:
        context, commands = self.context, self.context.commands
        left_before = commands.commands_left
        executed = ExecutedStep(number, step.command, step.delay, "unknown")
        try:
            with context.services.deadlines.until(context.deadline):
                reason = await commands.send(self.device, step.command)
        except (TimeoutError, BridgeError) as error:
            if commands.commands_left > left_before:
                self.executed.append(executed)
                raise _CutShortError(_UNKNOWN) from None
            failure = RequestTimeout() if isinstance(error, TimeoutError) else error
            if number == 1:
                raise failure from None
            if isinstance(failure, RequestTimeout):
                raise _CutShortError(_OUT_OF_TIME) from None
            raise _CutShortError(Text(failure.detail("zh"), failure.detail("en"))) from None
        self.executed.append(executed)
        self._judge(reason, executed)

    def _judge(self, reason: int, executed: ExecutedStep) -> None:
        if reason < NO_MATCHING_SUBSCRIBERS:
            executed.status = "success"
            return
        if executed.step == 1:
            # The first step reached no one: the preset failed as a whole.
            self.context.commands.check(reason, self.device)
        refused = reason >= REFUSED_FROM
        executed.status = "refused" if refused else "unreachable"
        raise _CutShortError(_REFUSED if refused else _UNREACHABLE)

    async def _pause(self, seconds: float, seconds_after: float) -> None:
        """Wait between two steps, if deadline and drain leave the time for what follows."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if due >= self.context.deadline:
            raise _CutShortError(_OUT_OF_TIME)
        drain = self.context.services.drain
        if not drain.begun.is_set():
            try:
                async with asyncio.timeout_at(due):
                    await drain.begun.wait()
            except TimeoutError:
                return
        if due + seconds_after > drain.until - DRAIN_MARGIN:
            raise _CutShortError(_DRAINING)
        await asyncio.sleep(due - loop.time())


async def run_sequence(context: Context, device: DeviceProfile, plan: PresetPlan) -> SequenceResult:
    """Run a sequence, alone on its device; single commands go out between its steps.

    Raises DeviceBusy if another sequence runs there, or the first step's error. If a later step
    fails, the result has `success` false and lists the steps that left.
    """
    with context.services.queues.sequence(device_key(device.uuid)) as alone:
        if not alone:
            raise DeviceBusy(device=device.name)
        context.commands.begin_sequence()
        run = _Run(context, device, plan)
        cut_short_by: list[str] = []
        language = context.services.settings.language
        try:
            await run.all_steps()
        except _CutShortError as cut:
            cut_short_by.append(cut.reason.in_(language))
    sent, total = len(run.executed), len(plan.steps)
    message = (_CUT_SHORT if cut_short_by else _DONE).in_(language)
    return SequenceResult(
        success=not cut_short_by,
        message=message.format(
            preset=plan.name, total=total, sent=sent, reason="".join(cut_short_by)
        ),
        preset_name=plan.name,
        total_steps=total,
        executed_steps=run.executed,
        errors=cut_short_by,
    )
