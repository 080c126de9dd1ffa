local text = { type = "string" }

return {
  name = "ai-proxy",
  fields = {
    { config = { type = "record", fields = {
      { route_type = text },
      { model = { type = "record", fields = {
        { provider = text },
        { name = text },
        { options = { type = "record", fields = { { upstream_url = { type = "string", required = true } } } } },
      } } },
      { auth = { type = "record", fields = { { header_name = text }, { header_value = text } } } },
    } } },
  },
}
