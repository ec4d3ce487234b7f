// Every word on the page, in both languages, and the numbers as people read them.

const WORDS = {
  zh: {
    title: "桥接控制台",
    forgetKey: "退出",
    otherLanguage: "EN",
    otherLanguageLabel: "Switch to English",
    toDark: "深色",
    toLight: "浅色",
    keyTitle: "需要 API 密钥",
    keyWhy: "此桥接服务由密钥保护。密钥只保存在此标签页中，关闭即忘。",
    keyLabel: "API 密钥",
    keyOpen: "打开",
    keyWrong: "这个密钥不对，请核对后再试。",
    stateTitle: "运行状态",
    broker: "MQTT 服务器",
    database: "数据库",
    inFlight: "处理中",
    uptime: "已运行",
    connected: "已连接",
    disconnected: "未连接",
    allWell: "一切正常",
    connecting: "正在连接…",
    noAnswer: "桥接服务没有回应，正在重试。",
    brokerGone: "MQTT 服务器未连接：无法控制设备，也收不到 MQTT 请求。桥接服务正在重连。",
    databaseGone: "数据库未连接：无法读取设备。桥接服务正在重连。",
    bothGone: "MQTT 服务器和数据库都未连接。桥接服务正在重连。",
    bridgeGone: "桥接服务没有回应，以下是最后的状态。正在重试。",
    workerNote: "共有 {workers} 个工作进程，这里显示其中一个的请求：{instance}",
    plotsTitle: "最近五分钟",
    rate: "请求速率",
    rateUnit: "次/秒",
    rateNote: "五分钟内 {count} 次",
    errors: "错误",
    errorsUnit: "五分钟内",
    latency: "延迟",
    latencyUnit: "一半请求更快",
    noneYet: "—",
    minutesAgo: "5 分钟前",
    now: "现在",
    refused: "拒绝 (4xx)",
    failed: "失败 (5xx)",
    deviceTitle: "设备",
    uuidLabel: "设备 UUID",
    lookUp: "查看",
    online: "在线",
    offline: "离线",
    lastSeen: "最后在线 {time}",
    neverSeen: "从未上线",
    refresh: "刷新",
    readings: "传感器",
    noReadings: "还没有传感器数据",
    ports: "端口",
    noPorts: "没有可控制的端口",
    presets: "预设",
    on: "开",
    off: "关",
    send: "发送",
    sending: "发送中…",
    run: "执行",
    running: "执行中…",
    sequence: "序列",
    unreachable: "桥接服务没有回应",
    requestsTitle: "最近 200 个请求",
    onlyErrors: "仅错误",
    pause: "暂停",
    resume: "继续",
    noRequests: "还没有请求",
    colTime: "时间",
    colTransport: "通道",
    colOperation: "操作",
    colDevice: "设备",
    colCode: "代码",
    colDuration: "用时",
    showDevice: "查看设备 {uuid}",
    ago: "{span}前",
    justNow: "刚刚",
    seconds: "{n} 秒",
    minutes: "{n} 分钟",
    hours: "{n} 小时",
    days: "{n} 天",
  },
  en: {
    title: "Bridge console",
    forgetKey: "Sign out",
    otherLanguage: "中文",
    otherLanguageLabel: "切换到中文",
    toDark: "Dark",
    toLight: "Light",
    keyTitle: "An API key is needed",
    keyWhy: "This bridge is guarded by keys. Yours stays in this tab and is forgotten with it.",
    keyLabel: "API key",
    keyOpen: "Open",
    keyWrong: "That is not one of the keys. Check it and try again.",
    stateTitle: "State",
    broker: "MQTT broker",
    database: "Database",
    inFlight: "In flight",
    uptime: "Up for",
    connected: "Connected",
    disconnected: "Not connected",
    allWell: "All is well",
    connecting: "Connecting…",
    noAnswer: "The bridge does not answer. Trying again.",
    brokerGone:
      "The MQTT broker is not connected: devices can't be controlled and no MQTT request arrives. "
      + "The bridge is trying again.",
    databaseGone:
      "The database is not connected: devices can't be read. The bridge is trying again.",
    bothGone: "Neither broker nor database is connected. The bridge is trying again.",
    bridgeGone: "The bridge does not answer; below is what was last known. Trying again.",
    workerNote: "There are {workers} workers; these are the requests of one: {instance}",
    plotsTitle: "The last five minutes",
    rate: "Requests",
    rateUnit: "per second",
    rateNote: "{count} in five minutes",
    errors: "Errors",
    errorsUnit: "in five minutes",
    latency: "Latency",
    latencyUnit: "half are faster",
    noneYet: "—",
    minutesAgo: "5 min ago",
    now: "now",
    refused: "refused (4xx)",
    failed: "failed (5xx)",
    deviceTitle: "Device",
    uuidLabel: "Device UUID",
    lookUp: "Look up",
    online: "online",
    offline: "offline",
    lastSeen: "last seen {time}",
    neverSeen: "never seen",
    refresh: "Refresh",
    readings: "Sensors",
    noReadings: "No readings yet",
    ports: "Ports",
    noPorts: "No ports to control",
    presets: "Presets",
    on: "On",
    off: "Off",
    send: "Send",
    sending: "Sending…",
    run: "Run",
    running: "Running…",
    sequence: "sequence",
    unreachable: "The bridge does not answer",
    requestsTitle: "Last 200 requests",
    onlyErrors: "Errors only",
    pause: "Pause",
    resume: "Resume",
    noRequests: "No requests yet",
    colTime: "Time",
    colTransport: "Via",
    colOperation: "Operation",
    colDevice: "Device",
    colCode: "Code",
    colDuration: "Took",
    showDevice: "Look up device {uuid}",
    ago: "{span} ago",
    justNow: "just now",
    seconds: "{n} s",
    minutes: "{n} min",
    hours: "{n} h",
    days: "{n} d",
  },
};

let language = "zh";

export function currentLanguage() {
  return language;
}

export function speak(wanted) {
  language = wanted in WORDS ? wanted : "zh";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = word("title");
  for (const element of document.querySelectorAll("[data-text]")) {
    element.textContent = word(element.dataset.text);
  }
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", word(element.dataset.label));
  }
}

export function word(name, values = {}) {
  return WORDS[language][name].replace(/\{(\w+)\}/g, (_, key) => String(values[key]));
}

export function span(seconds) {
  if (seconds < 60) return word("seconds", { n: Math.round(seconds * 10) / 10 });
  if (seconds < 3600) return word("minutes", { n: Math.floor(seconds / 60) });
  if (seconds < 86400) return word("hours", { n: Math.floor(seconds / 3600) });
  return word("days", { n: Math.floor(seconds / 86400) });
}

export function age(seconds) {
  return seconds < 2 ? word("justNow") : word("ago", { span: span(Math.floor(seconds)) });
}

export function milliseconds(ms) {
  if (ms === null) return word("noneYet");
  if (ms >= 1000) return `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
  return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

export function count(number) {
  return number.toLocaleString(document.documentElement.lang);
}

export function clock(unixSeconds) {
  return new Date(unixSeconds * 1000).toLocaleTimeString("en-GB");
}
