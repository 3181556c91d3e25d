# Render a batch-connect app as Open OnDemand's dashboard does, with Ruby's standard
# library alone:
#
#     ruby render.rb APP OUT VALUES.json [templates]
#
# VALUES are what a user typed, by field. OUT gets the session's files, view.html and
# submit.json. With `templates` a refusal by submit.yml.erb does not stop the rest.
# Exit 3: refused, with the reason on standard error.
require "cgi"
require "erb"
require "fileutils"
require "json"
require "ostruct"
require "yaml"

# the dashboard's two settings that matter: this trim mode, and the file's own name
def render(path, binding)
  erb = ERB.new(File.read(path, encoding: "utf-8"), trim_mode: "-")
  erb.filename = path
  erb.result(binding)
end

# a file is a template only if its name says so
def read_yaml(folder, name, binding = nil)
  erb = File.join(folder, "#{name}.yml.erb")
  return YAML.safe_load(render(erb, binding)) if File.file?(erb)
  YAML.safe_load(File.read(File.join(folder, "#{name}.yml"), encoding: "utf-8"))
end

# values are texts; a field without a table in `attributes` is fixed
def context_of(form, typed)
  fixed, open = form["form"].partition { |id| form["attributes"].key?(id) && !form["attributes"][id].is_a?(Hash) }
  strange = typed.keys - open
  abort "no such fields: #{strange.join(", ")}" unless strange.empty?
  values = fixed.to_h { |id| [id, form["attributes"][id].to_s] }
  open.each { |id| values[id] = typed.fetch(id) { (form["attributes"][id] || {})["value"] }.to_s }
  OpenStruct.new(values.merge("cluster" => form["cluster"].to_s))
end

# what the fields that the dashboard knows by name ask of the scheduler
def smart_fields(context)
  script = { "wall_time" => (context.bc_num_hours.strip.empty? ? 1 : context.bc_num_hours.to_i) * 3600 }
  script["accounting_id"] = context.bc_account.strip unless context.bc_account.strip.empty?
  script["queue_name"] = context.bc_queue.strip unless context.bc_queue.strip.empty?
  script
end

TemplateBinding = Struct.new(:session, :context) do
  def get_binding = binding
end

app, out, values, mode = ARGV
form = read_yaml(app, "form")
context = context_of(form, JSON.parse(File.read(values, encoding: "utf-8")))
begin
  submit = read_yaml(app, "submit", context.instance_eval { binding })
  submit["script"] = smart_fields(context).merge(submit["script"])
rescue StandardError => e
  warn e.message
  exit 3 unless mode == "templates"
end

FileUtils.mkdir_p(out)
FileUtils.cp_r(File.join(app, "template", "."), out, preserve: true)
session = OpenStruct.new(id: "test", staged_root: out)
Dir.glob("#{out}/**/*.erb").each do |file|
  text = render(file, TemplateBinding.new(session, context).get_binding)
  File.write(file.delete_suffix(".erb"), text)
  File.chmod(File.stat(file).mode, file.delete_suffix(".erb"))
end
File.write("#{out}/submit.json", JSON.pretty_generate(submit)) if submit
connection = OpenStruct.new(host: "node1", port: 12345, password: "a\"<b>&c")
File.write("#{out}/view.html", render("#{app}/view.html.erb", connection.instance_eval { binding }))
