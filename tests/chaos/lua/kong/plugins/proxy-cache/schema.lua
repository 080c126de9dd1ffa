return {
  name = "proxy-cache",
  fields = { { config = { type = "record", fields = { { strategy = { type = "string", required = true } } } } } },
}
