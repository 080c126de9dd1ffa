local strings = { type = "array", elements = { type = "string" } }

return {
  name = "proxy-cache",
  fields = {
    { config = { type = "record", fields = {
      { strategy = { type = "string", required = true } },
      { request_method = strings },
      { content_type = strings },
    } } },
  },
}
